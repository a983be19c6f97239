// Products of small fp32 matrices that lie in the cache.

#pragma once

#include "vector.h"

namespace {

#ifdef __AVX512F__
constexpr long kMostVectors = 4;  // of a product's columns: 32 registers hold 6 x 4 sums, 4 right sides, 1 left side
#elif defined(__ARM_NEON)
constexpr long kMostVectors = 4;  // 32 registers here too
#else
constexpr long kMostVectors = 2;  // 16 registers hold 6 x 2 sums, 2 right sides, 1 left side
#endif

// c[R x V vectors] (+)= a b. a's values lie `row` apart between rows and `step` between columns; b holds V vectors for
// each of its `steps` rows, one after the other.
template <int R, int V, bool add>
inline void product(const float* a, long row, long step, const float* b, long steps, float* c, long c_row) {
  vec sums[R][V] = {};
  for (long k = 0; k < steps; k++) {
    vec right[V];
#pragma GCC unroll 4
    for (long v = 0; v < V; v++) right[v] = load(b + (k * V + v) * kLanes);
#pragma GCC unroll 6
    for (long r = 0; r < R; r++) {
      const vec left = all(a[r * row + k * step]);
#pragma GCC unroll 4
      for (long v = 0; v < V; v++) sums[r][v] += left * right[v];
    }
  }
#pragma GCC unroll 6
  for (long r = 0; r < R; r++)
#pragma GCC unroll 4
    for (long v = 0; v < V; v++) {
      float* const at = c + r * c_row + v * kLanes;
      store(at, add ? load(at) + sums[r][v] : sums[r][v]);
    }
}

// The same for any number of rows, six at a time.
template <int V, bool add>
void product_rows(long rows, const float* a, long row, long step, const float* b, long steps, float* c, long c_row) {
  long r = 0;
  for (; r + 6 <= rows; r += 6) product<6, V, add>(a + r * row, row, step, b, steps, c + r * c_row, c_row);
  a += r * row;
  c += r * c_row;
  switch (rows - r) {  // what is left of the rows
    case 5:
      return product<5, V, add>(a, row, step, b, steps, c, c_row);
    case 4:
      return product<4, V, add>(a, row, step, b, steps, c, c_row);
    case 3:
      return product<3, V, add>(a, row, step, b, steps, c, c_row);
    case 2:
      return product<2, V, add>(a, row, step, b, steps, c, c_row);
    case 1:
      return product<1, V, add>(a, row, step, b, steps, c, c_row);
    default:
      return;
  }
}

template <bool add>
void multiply(long vectors, long rows, const float* a, long row, long step, const float* b, long steps, float* c,
              long c_row) {
  if (vectors == 4) product_rows<4, add>(rows, a, row, step, b, steps, c, c_row);
  if (vectors == 2) product_rows<2, add>(rows, a, row, step, b, steps, c, c_row);
  if (vectors == 1) product_rows<1, add>(rows, a, row, step, b, steps, c, c_row);
}

// Columns that one product computes, in vectors, for a number of channels that is a multiple of 16.
long vectors_of(long channels) {
  long vectors = kMostVectors;
  while (channels % (vectors * kLanes)) vectors /= 2;
  return vectors;
}

}  // namespace
