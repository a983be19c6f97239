// fp32 vectors of the width that the compiler was allowed: 16 lanes with AVX-512F, 4 with NEON, else 8.
//
// They are written in the vector extensions of GCC and Clang, so that one source serves every instruction set.

#pragma once

#include <cstdint>
#include <cstring>

#ifdef __AVX2__
#include <immintrin.h>
#endif

#include "scratch.h"

namespace {

#ifdef __AVX512F__
constexpr long kLanes = 16;
#elif defined(__ARM_NEON)
constexpr long kLanes = 4;
#else
constexpr long kLanes = 8;
#endif

typedef float vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t ints __attribute__((vector_size(4 * kLanes)));
typedef uint8_t bytes __attribute__((vector_size(kLanes)));

template <class Vector, class Value>
inline Vector load_as(const Value* p) {
  Vector v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline vec load(const float* p) { return load_as<vec>(p); }
template <class Vector, class Value>
inline void store(Value* p, Vector v) {
  std::memcpy(p, &v, sizeof v);
}
// Numbers of 0 to 3, one byte for each lane. GCC 12 converts vectors of such sizes lane by lane, with 30 instructions.
inline ints load_places(const uint8_t* p) {
#ifdef __AVX512F__
  return reinterpret_cast<ints>(_mm512_cvtepu8_epi32(load_as<__m128i>(p)));
#elif defined(__AVX2__)
  return reinterpret_cast<ints>(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
  return __builtin_convertvector(load_as<bytes>(p), ints);
#endif
}
inline void store_places(uint8_t* p, ints v) {
#ifdef __AVX512F__
  store(p, _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(v)));
#elif defined(__AVX2__)
  const __m256i lanes = reinterpret_cast<__m256i>(v);
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(lanes), _mm256_extracti128_si256(lanes, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
#else
  store(p, __builtin_convertvector(v, bytes));
#endif
}
// value + 0 would have to be computed, since -0 + 0 is 0; value - 0 need not be.
inline vec all(float value) { return value - vec{}; }
// v where `mask` has all bits set, 0 where it has none.
inline vec where(ints mask, vec v) { return reinterpret_cast<vec>(reinterpret_cast<ints>(v) & mask); }
inline vec choose(ints mask, vec one, vec other) {
  return reinterpret_cast<vec>((reinterpret_cast<ints>(one) & mask) | (reinterpret_cast<ints>(other) & ~mask));
}

}  // namespace
