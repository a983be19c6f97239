// bf16 on a CPU with AVX-512 BF16: loading and storing, and products of small matrices that lie in the cache.

#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>

namespace {

using bf16 = uint16_t;

// Grows and never shrinks; one for each thread and use.
template <class Value>
class Scratch {
 public:
  Value* of(size_t count) {
    if (count > size_) {
      std::free(data_);
      data_ = static_cast<Value*>(std::aligned_alloc(64, (count * sizeof(Value) + 63) / 64 * 64));
      if (!data_) std::abort();
      size_ = count;
    }
    return data_;
  }
  ~Scratch() { std::free(data_); }

 private:
  Value* data_ = nullptr;
  size_t size_ = 0;
};

inline __m512 widen(__m256i halves) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}
inline __m512 load(const bf16* p) { return widen(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline void store(bf16* p, __m512 v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v)));
}
// 16 pairs (first[i], second[i]), which is what a product over pairs reads.
inline void store_pairs(bf16* p, __m512 first, __m512 second) {
  const __m512i low = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(first)));
  const __m512i high = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(second)));
  _mm512_storeu_si512(p, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
}

// c[R x 16 V] (+)= a[R x 2 K] b[2 K x 16 V]. a holds pairs as 32-bit words, `row` apart between rows and `step`
// between pairs; b holds 16 V pairs for each step, one after the other.
template <int R, int V, bool accumulate>
inline void product(const uint32_t* a, long row, long step, const bf16* b, long pairs, float* c, long c_row) {
  __m512 sums[R][V];
#pragma GCC unroll 16
  for (long r = 0; r < R; r++)
#pragma GCC unroll 4
    for (long v = 0; v < V; v++)
      sums[r][v] = accumulate ? _mm512_loadu_ps(c + r * c_row + 16 * v) : _mm512_setzero_ps();
  for (long k = 0; k < pairs; k++) {
    __m512bh right[V];
#pragma GCC unroll 4
    for (long v = 0; v < V; v++) right[v] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(b + (k * V + v) * 32));
#pragma GCC unroll 16
    for (long r = 0; r < R; r++) {
      const __m512bh left = reinterpret_cast<__m512bh>(_mm512_set1_epi32(a[r * row + k * step]));
#pragma GCC unroll 4
      for (long v = 0; v < V; v++) sums[r][v] = _mm512_dpbf16_ps(sums[r][v], left, right[v]);
    }
  }
#pragma GCC unroll 16
  for (long r = 0; r < R; r++)
#pragma GCC unroll 4
    for (long v = 0; v < V; v++) _mm512_storeu_ps(c + r * c_row + 16 * v, sums[r][v]);
}

// The same for any number of rows, six at a time: 6 x 4 sums, 4 right sides and one left side fill the registers.
template <int V, bool accumulate>
void product_rows(long rows, const uint32_t* a, long row, long step, const bf16* b, long pairs, float* c, long c_row) {
  long r = 0;
  for (; r + 6 <= rows; r += 6) product<6, V, accumulate>(a + r * row, row, step, b, pairs, c + r * c_row, c_row);
  a += r * row;
  c += r * c_row;
  switch (rows - r) {  // what is left of the rows
    case 5:
      product<5, V, accumulate>(a, row, step, b, pairs, c, c_row);
      break;
    case 4:
      product<4, V, accumulate>(a, row, step, b, pairs, c, c_row);
      break;
    case 3:
      product<3, V, accumulate>(a, row, step, b, pairs, c, c_row);
      break;
    case 2:
      product<2, V, accumulate>(a, row, step, b, pairs, c, c_row);
      break;
    case 1:
      product<1, V, accumulate>(a, row, step, b, pairs, c, c_row);
      break;
    default:
      break;
  }
}

template <bool accumulate>
void multiply(long vectors, long rows, const uint32_t* a, long row, long step, const bf16* b, long pairs, float* c,
              long c_row) {
  if (vectors == 4) product_rows<4, accumulate>(rows, a, row, step, b, pairs, c, c_row);
  if (vectors == 2) product_rows<2, accumulate>(rows, a, row, step, b, pairs, c, c_row);
  if (vectors == 1) product_rows<1, accumulate>(rows, a, row, step, b, pairs, c, c_row);
}

// Output channels that one product computes, in vectors of 16.
long vectors_of(long channels) { return channels % 64 == 0 ? 4 : channels % 32 == 0 ? 2 : 1; }

}  // namespace
