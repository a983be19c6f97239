// bf16 on a CPU with AVX-512 BF16: loading and storing, and memory to work in.

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

}  // namespace
