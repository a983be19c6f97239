// Batch norm and activation as one operation on channels-last fp32 images, [pixel][channel], with its gradient.
//
// What norm.cpp does in bf16, with the same activations; here the logistic function is divided out in full.

#include <omp.h>

#include <algorithm>
#include <cstring>

#include "vector.h"

namespace {

constexpr long kStretch = 64;

// What `term(row, channel, first, second)` adds up to over all rows, channel by channel: in fp32 over short stretches
// and in fp64 over those.
template <class Term>
void sum_rows(long rows, long channels, double* first, double* second, Term term) {
  std::memset(first, 0, channels * sizeof(double));
  std::memset(second, 0, channels * sizeof(double));
#pragma omp parallel
  {
    static thread_local Scratch<double> totals;
    double* const mine = totals.of(2L * channels);
    std::memset(mine, 0, 2L * channels * sizeof(double));
    // Fixed shares, added in a fixed order, so that the same number of threads gives the same bits.
#pragma omp for schedule(static)
    for (long begin = 0; begin < rows; begin += kStretch) {
      const long end = std::min(begin + kStretch, rows);
      for (long c = 0; c < channels; c += kLanes) {
        vec a = {}, b = {};
        for (long row = begin; row < end; row++) term(row, c, a, b);
        for (long l = 0; l < kLanes; l++) {
          mine[c + l] += a[l];
          mine[channels + c + l] += b[l];
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

// e^x to 1e-7 of its size: a power of two times a polynomial for the rest, at most half a bit. Beyond +-87 it stays.
inline vec exponential(vec x) {
  x = choose(x < -87.0f, all(-87.0f), choose(x > 87.0f, all(87.0f), x));
  const vec bits = x * 1.44269504f;
  // Adding and taking away 1.5 x 2^23 rounds to a whole number.
  const vec whole = (bits + 12582912.0f) - 12582912.0f;
  const vec rest = (x - whole * 0.693359375f) - whole * -2.12194440e-4f;
  vec sum = all(1.0f / 5040);
  for (const float term : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) sum = sum * rest + term;
  const ints power = (__builtin_convertvector(whole, ints) + 127) << 23;
  return sum * reinterpret_cast<vec>(power);
}

struct Relu {
  vec of(vec x) const { return where(~(x <= 0.0f), x); }  // what is not a number stays
  vec gradient(vec x, vec g) const { return where(x > 0.0f, g); }
};

struct None {
  vec of(vec x) const { return x; }
  vec gradient(vec, vec g) const { return g; }
};

struct Gated {
  float linear, cubic;
  vec gate(vec x) const { return 1.0f / (1.0f + exponential(-(linear * x + cubic * x * x * x))); }
  vec of(vec x) const { return x * gate(x); }
  vec gradient(vec x, vec g) const {
    const vec s = gate(x), slope = linear + 3.0f * cubic * x * x;
    // Far from zero the logistic function is flat, and the slope of what stands in it may be infinite.
    const vec bend = s * (1.0f - s);
    return g * (s + where(bend > 1e-30f, x * slope * bend));
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
    use(Gated{linear, cubic});
}

// Call `use` with what adds the other branch of a residual block, of which there may be none: x plus its pixel at `at`.
template <class Use>
void with_branch(const float* branch, Use use) {
  if (branch)
    use([=](long at, vec x) { return x + load(branch + at); });
  else
    use([](long, vec x) { return x; });
}

}  // namespace

extern "C" {

// Each channel's sum and sum of squares.
void norm_sums(const float* z, long rows, long channels, double* sum, double* squares) {
  sum_rows(rows, channels, sum, squares, [=](long row, long c, vec& a, vec& b) {
    const vec v = load(z + row * channels + c);
    a += v;
    b += v * v;
  });
}

// y = activation(scale z + shift + branch); `branch` may be null, here and below.
void norm_activate(const float* z, const float* branch, const float* scale, const float* shift, float* y, long rows,
                   long channels, float linear, float cubic) {
  with_activation(linear, cubic, [=](auto activation) {
    with_branch(branch, [=](auto added) {
#pragma omp parallel for schedule(static)
      for (long row = 0; row < rows; row++)
        for (long c = 0; c < channels; c += kLanes) {
          const long at = row * channels + c;
          store(y + at, activation.of(added(at, load(z + at) * load(scale + c) + load(shift + c))));
        }
    });
  });
}

// Each channel's sum of the gradient that passes the activation, and of that times z.
void norm_activate_gradient_sums(const float* gradient, const float* z, const float* branch, const float* scale,
                                 const float* shift, long rows, long channels, double* sum, double* products,
                                 float linear, float cubic) {
  with_activation(linear, cubic, [=](auto activation) {
    with_branch(branch, [=](auto added) {
      sum_rows(rows, channels, sum, products, [=](long row, long c, vec& a, vec& b) {
        const long at = row * channels + c;
        const vec v = load(z + at), x = added(at, v * load(scale + c) + load(shift + c));
        const vec g = activation.gradient(x, load(gradient + at));
        a += g;
        b += g * v;
      });
    });
  });
}

// out = scale x (the gradient that passes the activation) + slope z + offset: the gradient of z. That of the branch is
// the gradient that passes the activation; it is written where `of_branch` is not null.
void norm_activate_gradient(const float* gradient, const float* z, const float* branch, const float* scale,
                            const float* shift, const float* slope, const float* offset, float* out, float* of_branch,
                            long rows, long channels, float linear, float cubic) {
  with_activation(linear, cubic, [=](auto activation) {
    with_branch(branch, [=](auto added) {
#pragma omp parallel for schedule(static)
      for (long row = 0; row < rows; row++)
        for (long c = 0; c < channels; c += kLanes) {
          const long at = row * channels + c;
          const vec v = load(z + at), s = load(scale + c), x = added(at, v * s + load(shift + c));
          const vec g = activation.gradient(x, load(gradient + at));
          store(out + at, s * g + (load(slope + c) * v + load(offset + c)));
          if (of_branch) store(of_branch + at, g);
        }
    });
  });
}

}  // extern "C"
