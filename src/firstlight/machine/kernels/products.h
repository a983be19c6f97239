// Products of small matrices that lie in the cache, of factors in one of two formats of 16 bits.
//
// A factor is read in pairs: `Factors::Pairs` is 16 of them, and `add_products` multiplies two such vectors value by
// value and adds up. What differs between the formats is how many products fit into a second, and what a number may be.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "bf16.h"

namespace {

#ifdef __AVX512FP16__

// fp16, on Intel's chips: their fused multiply-add of 32 values in fp16 is four times as fast as their product of bf16
// pairs. It keeps 11 bits where bf16 keeps 8, but ends at 65,504 and fades below 6e-5. So each tensor is brought to a
// known size by a power of two, and sums that may be long leave fp16 for fp32 every `kChain` pairs.
struct Factors {
  using Pairs = __m512h;
  using Sums = __m512h;  // of the first and of the second of each pair, side by side

  static constexpr long kChain = 128;
  static Pairs pairs(__m512i bits) { return reinterpret_cast<Pairs>(bits); }
  static Sums nothing() { return _mm512_setzero_ph(); }
  static Sums add_products(Sums sums, Pairs left, Pairs right) { return _mm512_fmadd_ph(left, right, sums); }
  static __m512 total(Sums sums) {
    const Sums turned = reinterpret_cast<Sums>(_mm512_rol_epi32(reinterpret_cast<__m512i>(sums), 16));
    const __m256i both = _mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(_mm512_add_ph(sums, turned)));
    return _mm512_cvtph_ps(both);
  }
  static __m256i narrow(__m512 v) { return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

  static __m512 scaled(__m512 v, float scale) { return v * _mm512_set1_ps(scale); }
  // The power of two that brings `largest`, an absolute value, just below `bound`; 1 where that is zero or no number.
  static float scale(float largest, float bound) {
    if (!std::isnormal(largest)) return 1.0f;
    int exponent;
    std::frexp(largest, &exponent);
    return std::ldexp(bound, std::clamp(-exponent, -60, 60));
  }
  // The largest absolute value; any that is no number counts as larger than all numbers.
  static float largest(const bf16* values, long count) {
    unsigned result = 0;
#pragma omp parallel for simd schedule(static) reduction(max : result)
    for (long i = 0; i < count; i++) result = std::max(result, values[i] & 0x7fffu);
    return as_float(result << 16);
  }
  static float largest(const float* values, long count) {
    unsigned result = 0;
    const auto* bits = reinterpret_cast<const uint32_t*>(values);
#pragma omp parallel for simd schedule(static) reduction(max : result)
    for (long i = 0; i < count; i++) result = std::max(result, bits[i] & 0x7fffffffu);
    return as_float(result);
  }

 private:
  static float as_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  }
};

#else

// bf16, whose range is that of fp32: nothing needs to be scaled, and pairs are multiplied and added in fp32.
struct Factors {
  using Pairs = __m512bh;
  using Sums = __m512;

  static constexpr long kChain = 1L << 30;
  static Pairs pairs(__m512i bits) { return reinterpret_cast<Pairs>(bits); }
  static Sums nothing() { return _mm512_setzero_ps(); }
  static Sums add_products(Sums sums, Pairs left, Pairs right) { return _mm512_dpbf16_ps(sums, left, right); }
  static __m512 total(Sums sums) { return sums; }
  static __m256i narrow(__m512 v) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)); }

  static __m512 scaled(__m512 v, float) { return v; }
  static float scale(float, float) { return 1.0f; }
  template <class Value>
  static float largest(const Value*, long) {
    return 1.0f;
  }
};

#endif

using factor = uint16_t;

inline void store_factors(factor* p, __m512 v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), Factors::narrow(v));
}
// 16 pairs (first[i], second[i]).
inline void store_pairs(factor* p, __m512 first, __m512 second) {
  const __m512i low = _mm512_cvtepu16_epi32(Factors::narrow(first));
  const __m512i high = _mm512_cvtepu16_epi32(Factors::narrow(second));
  _mm512_storeu_si512(p, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

// Where sums go: as they are, which is right for few products only, or as fp32, to stay or to be added to what is
// there.
enum class To { sums, set, add };

// c[R x 16 V] (+)= a[R x 2 K] b[2 K x 16 V]. a holds pairs as 32-bit words, `row` apart between rows and `step`
// between pairs; b holds 16 V pairs for each step, one after the other. 16 numbers of c take 64 bytes in either form.
template <int R, int V, To to>
inline void product(const uint32_t* a, long row, long step, const factor* b, long pairs, float* c, long c_row) {
  const long chain = to == To::sums ? pairs : Factors::kChain;
  for (long begin = 0; begin < pairs; begin += chain) {
    const long end = std::min(begin + chain, pairs);
    Factors::Sums sums[R][V];
#pragma GCC unroll 16
    for (long r = 0; r < R; r++)
#pragma GCC unroll 4
      for (long v = 0; v < V; v++) sums[r][v] = Factors::nothing();
    for (long k = begin; k < end; k++) {
      Factors::Pairs right[V];
#pragma GCC unroll 4
      for (long v = 0; v < V; v++) right[v] = Factors::pairs(_mm512_loadu_si512(b + (k * V + v) * 32));
#pragma GCC unroll 16
      for (long r = 0; r < R; r++) {
        const Factors::Pairs left = Factors::pairs(_mm512_set1_epi32(a[r * row + k * step]));
#pragma GCC unroll 4
        for (long v = 0; v < V; v++) sums[r][v] = Factors::add_products(sums[r][v], left, right[v]);
      }
    }
#pragma GCC unroll 16
    for (long r = 0; r < R; r++)
#pragma GCC unroll 4
      for (long v = 0; v < V; v++) {
        float* const at = c + r * c_row + 16 * v;
        if (to == To::sums) {
          _mm512_storeu_ps(at, reinterpret_cast<__m512>(sums[r][v]));
          continue;
        }
        const __m512 sum = Factors::total(sums[r][v]);
        _mm512_storeu_ps(at, to == To::add || begin ? _mm512_loadu_ps(at) + sum : sum);
      }
  }
}

// The same for any number of rows, six at a time: 6 x 4 sums, 4 right sides and one left side fill the registers.
template <int V, To to>
void product_rows(long rows, const uint32_t* a, long row, long step, const factor* b, long pairs, float* c,
                  long c_row) {
  long r = 0;
  for (; r + 6 <= rows; r += 6) product<6, V, to>(a + r * row, row, step, b, pairs, c + r * c_row, c_row);
  a += r * row;
  c += r * c_row;
  switch (rows - r) {  // what is left of the rows
    case 5:
      product<5, V, to>(a, row, step, b, pairs, c, c_row);
      break;
    case 4:
      product<4, V, to>(a, row, step, b, pairs, c, c_row);
      break;
    case 3:
      product<3, V, to>(a, row, step, b, pairs, c, c_row);
      break;
    case 2:
      product<2, V, to>(a, row, step, b, pairs, c, c_row);
      break;
    case 1:
      product<1, V, to>(a, row, step, b, pairs, c, c_row);
      break;
    default:
      break;
  }
}

template <To to>
void multiply(long vectors, long rows, const uint32_t* a, long row, long step, const factor* b, long pairs, float* c,
              long c_row) {
  if (vectors == 4) product_rows<4, to>(rows, a, row, step, b, pairs, c, c_row);
  if (vectors == 2) product_rows<2, to>(rows, a, row, step, b, pairs, c, c_row);
  if (vectors == 1) product_rows<1, to>(rows, a, row, step, b, pairs, c, c_row);
}

// Output channels that one product computes, in vectors of 16.
long vectors_of(long channels) { return channels % 64 == 0 ? 4 : channels % 32 == 0 ? 2 : 1; }

// Store the transformed filters of outputs o and o + 1, o even, for 16 inputs from c on, as the right side of a product
// over the channels that a convolution reads: [written / 16 V][place][read / 2][16 V][2]. Forwards it reads inputs and
// writes outputs, backwards the other way round.
template <long places>
void store_filters(const __m512 (&u)[2][places], factor* out, long o, long c, long inputs, long outputs,
                   bool backwards) {
  const long reads = backwards ? outputs : inputs, width = 16 * vectors_of(backwards ? inputs : outputs);
  const long plane = reads * width;
  if (backwards) {
    factor* const to = out + c / width * places * plane + (o / 2 * width + c % width) * 2;
    for (long f = 0; f < places; f++) store_pairs(to + f * plane, u[0][f], u[1][f]);
    return;
  }
  for (long i = 0; i < 2; i++) {
    factor* const to = out + (o + i) / width * places * plane + (c / 2 * width + (o + i) % width) * 2;
    for (long f = 0; f < places; f++) {
      alignas(32) factor lanes[16];
      store_factors(lanes, u[i][f]);
      for (long k = 0; k < 8; k++) std::memcpy(to + f * plane + k * width * 2, lanes + 2 * k, 4);
    }
  }
}

// Add to sums[inputs x 16 V], whose rows are `row` apart, the product of [input / 16][pair][16][2] and [pair][16 V][2];
// or set them to it.
void multiply_pairs(long V, long inputs, const factor* left, const factor* right, long pairs, float* sums, long row,
                    bool add) {
  for (long i = 0; i < inputs; i += 16) {
    const auto* const a = reinterpret_cast<const uint32_t*>(left + i * pairs * 2);
    if (add)
      multiply<To::add>(V, 16, a, 1, 16, right, pairs, sums + i * row, row);
    else
      multiply<To::set>(V, 16, a, 1, 16, right, pairs, sums + i * row, row);
  }
}

}  // namespace
