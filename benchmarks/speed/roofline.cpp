// How many products a core makes in its registers, and how fast it reads memory, with the kernels' own instructions.

#include <omp.h>

#include "../../src/firstlight/machine/kernels/scratch.h"
#ifdef __AVX512BF16__
#include "../../src/firstlight/machine/kernels/products.h"
namespace {
using Sums = Factors::Sums;
constexpr long kFlop = 64;  // of 32 products of two numbers of 16 bits
inline Sums nothing() { return Factors::nothing(); }
inline Sums add(Sums sums, __m512i one, __m512i other) {
  return Factors::add_products(sums, Factors::pairs(one), Factors::pairs(other));
}
using Factor = __m512i;
inline Factor some() { return _mm512_set1_epi32(0); }
}  // namespace
#else
#include "../../src/firstlight/machine/kernels/vector.h"
namespace {
using Sums = vec;
using Factor = vec;
constexpr long kFlop = 2 * kLanes;
inline Sums nothing() { return all(0.0f); }
inline Sums add(Sums sums, Factor one, Factor other) { return sums + one * other; }
inline Factor some() { return all(0.0f); }
}  // namespace
#endif

extern "C" {

// Multiply and add `rounds` times on every thread; `flop` takes how many operations of floating point each of them did.
void multiply_in_registers(long rounds, int64_t* flop) {
  constexpr long kChains = 12;  // as many as hide the latency, and no more than registers
  *flop = rounds * kChains * kFlop;
#pragma omp parallel
  {
    Sums sums[kChains];
    Factor one = some(), other = some();
    for (auto& sum : sums) sum = nothing();
    for (long i = 0; i < rounds; i++) {
      asm volatile("" : "+v"(one), "+v"(other));  // what is not known cannot be computed beforehand
#pragma GCC unroll 12
      for (long k = 0; k < kChains; k++) {
        sums[k] = add(sums[k], one, other);
        asm volatile("" ::"v"(sums[k]));
      }
    }
  }
}

// Read `bytes` of a thread's own part `rounds` times on every thread; `values` holds the parts, one after the other.
void read_memory(const char* values, long bytes, long rounds) {
#pragma omp parallel
  {
    const char* const mine = values + omp_get_thread_num() * bytes;
    typedef int64_t words __attribute__((vector_size(32)));
    for (long round = 0; round < rounds; round++) {
      words sums[4] = {};
      for (long i = 0; i + 128 <= bytes; i += 128)
        for (long k = 0; k < 4; k++) {
          words value;
          __builtin_memcpy(&value, mine + i + 32 * k, 32);
          sums[k] |= value;
        }
      asm volatile("" ::"x"(sums[0] | sums[1] | sums[2] | sums[3]) : "memory");
    }
  }
}

}  // extern "C"
