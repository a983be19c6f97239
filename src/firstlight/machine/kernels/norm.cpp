// Batch norm and activation as one operation on channels-last bf16 images, [pixel][channel], with its gradient.
//
// Ioffe and Szegedy 2015 (arXiv 1502.03167), algorithm 1. Sums run in fp32 over short stretches and in fp64 over those.
// The activation is ReLU, or x times the logistic function of `linear` x + `cubic` x^3: SiLU with (1, 0), and GELU in
// its tanh form with twice the coefficients of that form (Hendrycks and Gimpel 2016, arXiv 1606.08415, section 2); or
// none. The other branch of a residual block may be added before it.

#include <omp.h>

#include <algorithm>
#include <cstring>

#include "bf16.h"

namespace {

constexpr long kStretch = 64;

// What `term(row, channel, first, second)` adds up to over all rows, channel by channel, in 16 lanes each.
template <class Term>
void sum_rows(long rows, long channels, double* first, double* second, Term term) {
  std::memset(first, 0, channels * sizeof(double));
  std::memset(second, 0, channels * sizeof(double));
#pragma omp parallel
  {
    static thread_local Scratch<double> totals;
    double* mine = totals.of(2L * channels);
    std::memset(mine, 0, 2L * channels * sizeof(double));
    // Fixed shares, added in a fixed order, so that the same number of threads gives the same bits.
#pragma omp for schedule(static)
    for (long begin = 0; begin < rows; begin += kStretch) {
      const long end = std::min(begin + kStretch, rows);
      for (long c = 0; c < channels; c += 32) {
        const bool two = c + 16 < channels;
        __m512 a[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()}, b[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
        for (long row = begin; row < end; row++) {
          term(row, c, a[0], b[0]);
          if (two) term(row, c + 16, a[1], b[1]);
        }
        for (long i = 0; i < 1 + two; i++)
          for (long half = 0; half < 2; half++) {
            double* to = mine + c + 16 * i + 8 * half;
            const auto widened = [&](__m512 v) {
              return _mm512_cvtps_pd(half ? _mm512_extractf32x8_ps(v, 1) : _mm512_castps512_ps256(v));
            };
            _mm512_storeu_pd(to, _mm512_loadu_pd(to) + widened(a[i]));
            _mm512_storeu_pd(to + channels, _mm512_loadu_pd(to + channels) + widened(b[i]));
          }
      }
    }
#pragma omp for schedule(static, 1) ordered
    for (long thread = 0; thread < omp_get_num_threads(); thread++) {
#pragma omp ordered
      for (long c = 0; c < channels; c++) {
        first[c] += mine[c];
        second[c] += mine[channels + c];
      }
    }
  }
}

// e^x to 1e-5 of its size, 0 where it underflows: a power of two times a polynomial for the rest, at most half a bit.
inline __m512 exponential(__m512 x) {
  const __m512 bits = _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f));
  const __m512 whole = _mm512_roundscale_ps(bits, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 rest = (bits - whole) * _mm512_set1_ps(0.69314718f);
  __m512 sum = _mm512_set1_ps(1.0f / 120);
  for (const float term : {1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(term));
  return _mm512_scalef_ps(sum, whole);
}

struct Relu {
  __m512 of(__m512 x) const { return _mm512_max_ps(_mm512_setzero_ps(), x); }
  __m512 gradient(__m512 x, __m512 g) const {
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ), g);
  }
};

struct None {
  __m512 of(__m512 x) const { return x; }
  __m512 gradient(__m512, __m512 g) const { return g; }
};

struct Gated {
  __m512 linear, cubic;
  // The logistic function by a reciprocal of 14 bits, more than bf16 keeps.
  __m512 gate(__m512 x) const {
    const __m512 inner = _mm512_fmadd_ps(cubic * x, x * x, linear * x);
    return _mm512_rcp14_ps(_mm512_set1_ps(1.0f) + exponential(_mm512_setzero_ps() - inner));
  }
  __m512 of(__m512 x) const { return x * gate(x); }
  __m512 gradient(__m512 x, __m512 g) const {
    const __m512 s = gate(x), slope = _mm512_fmadd_ps(_mm512_set1_ps(3.0f) * cubic * x, x, linear);
    return g * _mm512_fmadd_ps(x * slope, s * (_mm512_set1_ps(1.0f) - s), s);
  }
};

// Call `use` with the activation that two coefficients stand for; both zero is ReLU, a negative one is none.
template <class Use>
void with_activation(float linear, float cubic, Use use) {
  if (linear < 0)
    use(None{});
  else if (linear == 0 && cubic == 0)
    use(Relu{});
  else
    use(Gated{_mm512_set1_ps(linear), _mm512_set1_ps(cubic)});
}

// Call `use` with what adds the other branch of a residual block, of which there may be none: x plus its pixel at `at`.
template <class Use>
void with_branch(const bf16* branch, Use use) {
  if (branch)
    use([=](long at, __m512 x) { return x + load(branch + at); });
  else
    use([](long, __m512 x) { return x; });
}

}  // namespace

extern "C" {

// Each channel's sum and sum of squares.
void norm_sums(const bf16* z, long rows, long channels, double* sum, double* squares) {
  sum_rows(rows, channels, sum, squares, [=](long row, long c, __m512& a, __m512& b) {
    const __m512 v = load(z + row * channels + c);
    a = a + v;
    b = _mm512_fmadd_ps(v, v, b);
  });
}

// y = activation(scale z + shift + branch); `branch` may be null, here and below.
void norm_activate(const bf16* z, const bf16* branch, const float* scale, const float* shift, bf16* y, long rows,
                   long channels, float linear, float cubic) {
  with_activation(linear, cubic, [=](auto activation) {
    with_branch(branch, [=](auto added) {
#pragma omp parallel for schedule(static)
      for (long row = 0; row < rows; row++)
        for (long c = 0; c < channels; c += 16) {
          const long at = row * channels + c;
          const __m512 x = _mm512_fmadd_ps(load(z + at), _mm512_loadu_ps(scale + c), _mm512_loadu_ps(shift + c));
          store(y + at, activation.of(added(at, x)));
        }
    });
  });
}

// Each channel's sum of the gradient that passes the activation, and of that times z.
void norm_activate_gradient_sums(const bf16* gradient, const bf16* z, const bf16* branch, const float* scale,
                                 const float* shift, long rows, long channels, double* sum, double* products,
                                 float linear, float cubic) {
  with_activation(linear, cubic, [=](auto activation) {
    with_branch(branch, [=](auto added) {
      sum_rows(rows, channels, sum, products, [=](long row, long c, __m512& a, __m512& b) {
        const long at = row * channels + c;
        const __m512 v = load(z + at);
        const __m512 x = _mm512_fmadd_ps(v, _mm512_loadu_ps(scale + c), _mm512_loadu_ps(shift + c));
        const __m512 g = activation.gradient(added(at, x), load(gradient + at));
        a = a + g;
        b = _mm512_fmadd_ps(g, v, b);
      });
    });
  });
}

// out = scale x (the gradient that passes the activation) + slope z + offset: the gradient of z. That of the branch is
// the gradient that passes the activation; it is written where `of_branch` is not null.
void norm_activate_gradient(const bf16* gradient, const bf16* z, const bf16* branch, const float* scale,
                            const float* shift, const float* slope, const float* offset, bf16* out, bf16* of_branch,
                            long rows, long channels, float linear, float cubic) {
  with_activation(linear, cubic, [=](auto activation) {
    with_branch(branch, [=](auto added) {
#pragma omp parallel for schedule(static)
      for (long row = 0; row < rows; row++)
        for (long c = 0; c < channels; c += 16) {
          const long at = row * channels + c;
          const __m512 v = load(z + at), s = _mm512_loadu_ps(scale + c);
          const __m512 x = _mm512_fmadd_ps(v, s, _mm512_loadu_ps(shift + c));
          const __m512 g = activation.gradient(added(at, x), load(gradient + at));
          const __m512 rest = _mm512_fmadd_ps(_mm512_loadu_ps(slope + c), v, _mm512_loadu_ps(offset + c));
          store(out + at, _mm512_fmadd_ps(s, g, rest));
          if (of_branch) store(of_branch + at, g);
        }
    });
  });
}

}  // extern "C"
