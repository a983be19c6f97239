// 3x3 convolutions of stride 2 of channels-last bf16 images on a CPU with AVX-512 BF16, with 1.44 times fewer
// multiplications.
//
// Along a side, two outputs are y0 = g0 d0 + g1 d1 + g2 d2 and y1 = g0 d2 + g1 d3 + g2 d4. The outer taps meet only
// every second value, as two taps of a convolution of stride 1 would, so Winograd's F(2, 2) takes three multiplications
// for them: y0 = (d0 - d2) g0 + d2 (g0 + g2) and y1 = d2 (g0 + g2) - (d2 - d4) g2. The middle tap takes two. On both
// sides of a square these are 25 multiplications for 2x2 outputs instead of 36. Values are only added, never multiplied
// by constants, so bf16 keeps its precision. The gradients have the same form. What is summed over channels, and in
// which blocks, is as in winograd.cpp.
//
// Names: N images of H x W with outputs of ceil(H / 2) x ceil(W / 2), C channels, T tiles in a block, f one of the 25
// places of a transformed square. Places that meet the middle tap share its filter, so there are 16 filters.

#include <omp.h>

#include <algorithm>
#include <cstring>

#include "both_ways.h"
#include "products.h"

namespace {

constexpr long kAlong = 5, kPlaces = kAlong * kAlong, kFiltersAlong = 4, kFilters = kFiltersAlong * kFiltersAlong;

long filter_of(long place) {
  return std::min(place / kAlong, kFiltersAlong - 1) * kFiltersAlong + std::min(place % kAlong, kFiltersAlong - 1);
}
// Of two places that share a filter the second one adds to the sums of the first.
bool is_second(long place) { return place / kAlong == kAlong - 1 || place % kAlong == kAlong - 1; }

struct Images {
  const bf16* values;
  long H, W, C;
};

// Tiles of 2x2 outputs; the last one of a side may reach beyond the border.
struct Tiles {
  long down, across;
  Tiles(long H, long W) : down((H + 3) / 4), across((W + 3) / 4) {}
};

// 16 channels of an image, channel `c` first, of a square; beyond the border they are zeros.
template <long side>
struct Square {
  const bf16* values[side * side];
  float scale;

  // The square of tile t, which begins at `step` times the tile's row and column less `before`.
  Square(const Images& x, const Tiles& tiles, long t, long step, long before, const bf16* zeros, float scale)
      : scale(scale) {
    const long n = t / (tiles.across * tiles.down);
    const long top = t / tiles.across % tiles.down * step - before, left = t % tiles.across * step - before;
    for (long i = 0; i < side; i++)
      for (long j = 0; j < side; j++) {
        const long h = top + i, w = left + j;
        const bool inside = h >= 0 && h < x.H && w >= 0 && w < x.W;
        values[side * i + j] = inside ? x.values + ((n * x.H + h) * x.W + w) * x.C : zeros;
      }
  }
  __m512 at(long k, long c) const { return Factors::scaled(load(values[k] + c), scale); }
};

// What differs between the convolution and the gradient of its images: which square is read, and what is written of it.
struct Forwards {
  static constexpr long kSide = 5, kStep = 4, kBefore = 1, kOutputs = 2;
  template <class V>
  static void transform(const V (&d)[5], V (&out)[5]) {
    out[0] = d[0] - d[2];
    out[1] = d[2];
    out[2] = d[2] - d[4];
    out[3] = d[1];
    out[4] = d[3];
  }
  template <class V>
  static void transform_back(const V (&m)[5], V (&y)[2]) {
    y[0] = m[0] + m[1] + m[3];
    y[1] = m[1] - m[2] + m[4];
  }
};

struct Backwards {
  static constexpr long kSide = 3, kStep = 2, kBefore = 0, kOutputs = 4;
  template <class V>
  static void transform(const V (&d)[3], V (&out)[5]) {
    out[0] = d[0] - d[1];
    out[1] = d[1];
    out[2] = d[1] - d[2];
    out[3] = d[0];
    out[4] = d[1];
  }
  template <class V>
  static void transform_back(const V (&m)[5], V (&x)[4]) {
    x[0] = m[3];
    x[1] = m[0] + m[1];
    x[2] = m[4];
    x[3] = m[1] - m[2];
  }
};

// Of two gradients of outputs, for the gradient of the filters.
inline void transform_gradient(const __m512 (&y)[2], __m512 (&out)[5]) {
  out[0] = y[0];
  out[1] = y[0] + y[1];
  out[2] = _mm512_setzero_ps() - y[1];
  out[3] = y[0];
  out[4] = y[1];
}

// Of three taps; turned by 180 degrees for the gradient of the images.
inline void transform_filter(const __m512 (&g)[3], __m512 (&out)[4]) {
  out[0] = g[0];
  out[1] = g[0] + g[2];
  out[2] = g[2];
  out[3] = g[1];
}

inline void transform_filter_gradient(const __m512 (&u)[4], __m512 (&g)[3]) {
  g[0] = u[0] + u[1];
  g[1] = u[3];
  g[2] = u[1] + u[2];
}

// These and the blocks below are as in winograd.cpp.
constexpr float kImagesBound = 2, kFiltersBound = 1, kGradientBound = 1;

// Tiles in a block, so that a transformed block of that many channels fills about half of a core's second cache.
long block_of(long channels) { return std::max(48L, 8192 / channels / 6 * 6); }

long gradient_block(long inputs, long outputs) {
  const long wanted = std::max(131072L, 2 * inputs * outputs) / (inputs + outputs);
  return std::clamp(wanted / 16 * 16, 64L, 1024L);
}

template <class Way>
void run(const Images& x, const Tiles& tiles, long N, const factor* filters, float filters_scale, bf16* y, long H,
         long W, long outputs) {
  const long V = vectors_of(outputs), width = 16 * V, all = N * tiles.down * tiles.across;
  const long filter_plane = x.C * width, block = block_of(x.C);
  const float scale = Factors::scale(Factors::largest(x.values, N * x.H * x.W * x.C), kImagesBound);
  // Planes one cache line further apart than a power of two do not compete for the same places in the cache.
  const long plane = block * x.C + 32, sum_plane = block * width + 16;
#pragma omp parallel
  {
    static thread_local Scratch<factor> transformed;
    static thread_local Scratch<bf16> nothing;
    static thread_local Scratch<float> products;
    factor* const v = transformed.of(kPlaces * plane);
    float* const m = products.of(kPlaces * sum_plane);
    bf16* const zeros = nothing.of(x.C);
    std::memset(zeros, 0, x.C * sizeof(bf16));
#pragma omp for schedule(dynamic)
    for (long first = 0; first < all; first += block) {
      const long count = std::min(block, all - first);
      for (long t = 0; t < count; t++) {
        const Square<Way::kSide> square(x, tiles, first + t, Way::kStep, Way::kBefore, zeros, scale);
        for (long c = 0; c < x.C; c += 16)
          both_ways<Way::kSide, kAlong>([&](long k) { return square.at(k, c); },
                                        [&](long f, __m512 u) { store_factors(v + f * plane + t * x.C + c, u); },
                                        [](const auto& d, auto& out) { Way::transform(d, out); });
      }
      for (long o = 0; o < outputs; o += width) {
        for (long f = 0; f < kPlaces; f++)
          multiply<To::sums>(V, count, reinterpret_cast<const uint32_t*>(v + f * plane), x.C / 2, 1,
                             filters + (o / width * kFilters + filter_of(f)) * filter_plane, x.C / 2, m + f * sum_plane,
                             width);
        for (long t = 0; t < count; t++) {
          const long tile = first + t, n = tile / (tiles.across * tiles.down);
          const long top = tile / tiles.across % tiles.down * Way::kOutputs, left = tile % tiles.across * Way::kOutputs;
          for (long c = 0; c < width; c += 16)
            both_ways<kAlong, Way::kOutputs>(
                [&](long f) {
                  return reinterpret_cast<Factors::Sums>(_mm512_loadu_ps(m + f * sum_plane + t * width + c));
                },
                [&](long k, Factors::Sums sums) {
                  const long h = top + k / Way::kOutputs, w = left + k % Way::kOutputs;
                  if (h < H && w < W)
                    store(y + ((n * H + h) * W + w) * outputs + o + c,
                          Factors::scaled(Factors::total(sums), 1 / (scale * filters_scale)));
                },
                [](const auto& s, auto& out) { Way::transform_back(s, out); });
        }
      }
    }
  }
}

// [f][channels / width][tile / 2][width][2], planes `plane` apart, of tiles `begin` to `end` of a block, both even: one
// side of a product over tiles. An odd tile out is paired with zeros.
template <long side, class Transform>
void transform_pairs(const Images& x, const Tiles& tiles, long step, long before, float scale, long first, long begin,
                     long end, long count, long width, const bf16* zeros, factor* out, long plane,
                     Transform transform) {
  const long pairs = (count + 1) / 2;
  for (long t = begin; t < end; t += 2) {
    const bool two = t + 1 < count;
    const Square<side> one(x, tiles, first + t, step, before, zeros, scale);
    const Square<side> other(x, tiles, first + t + two, step, before, zeros, scale);
    for (long c = 0; c < x.C; c += 16) {
      __m512 u[kPlaces], v[kPlaces] = {};
      both_ways<side, kAlong>([&](long k) { return one.at(k, c); }, [&](long f, __m512 w) { u[f] = w; }, transform);
      if (two)
        both_ways<side, kAlong>([&](long k) { return other.at(k, c); }, [&](long f, __m512 w) { v[f] = w; }, transform);
      factor* const to = out + ((c / width * pairs + t / 2) * width + c % width) * 2;
#pragma GCC unroll 25
      for (long f = 0; f < kPlaces; f++) store_pairs(to + f * plane, u[f], v[f]);
    }
  }
}

}  // namespace

extern "C" {

// Transform filters laid out [output][3][3][input] in fp32 to the right side of a product over the channels that a
// convolution reads: [written / 16 V][filter][read / 2][16 V][2]. Forwards it reads inputs and writes outputs; for the
// gradient of the images (`backwards`) it reads outputs, writes inputs, and the filters are turned by 180 degrees.
// `scale` takes the factor by which they were multiplied.
void transform_strided_filters(const float* filters, factor* out, float* scale, long inputs, long outputs,
                               long backwards) {
  *scale = Factors::scale(Factors::largest(filters, 9 * inputs * outputs), kFiltersBound);
#pragma omp parallel for schedule(static)
  for (long pair = 0; pair < outputs / 2; pair++)
    for (long c = 0; c < inputs; c += 16) {
      __m512 u[2][kFilters];
      const long o = 2 * pair;
      for (long i = 0; i < 2; i++)
        both_ways<3, kFiltersAlong>(
            [&](long k) {
              const float* tap = filters + ((o + i) * 9L + (backwards ? 8 - k : k)) * inputs + c;
              return Factors::scaled(_mm512_loadu_ps(tap), *scale);
            },
            [&](long f, __m512 v) { u[i][f] = v; }, [](const auto& g, auto& t) { transform_filter(g, t); });
      store_filters(u, out, o, c, inputs, outputs, backwards);
    }
}

// Convolve N x H x W x `inputs` with filters as transformed and scaled.
void convolve_strided(const bf16* x, const factor* filters, const float* filters_scale, bf16* y, long N, long H, long W,
                      long inputs, long outputs) {
  run<Forwards>(Images{x, H, W, inputs}, Tiles(H, W), N, filters, *filters_scale, y, (H + 1) / 2, (W + 1) / 2, outputs);
}

// The gradient of the images, N x H x W x `inputs`, from that of the outputs, y.
void convolve_strided_gradient(const bf16* y, const factor* filters, const float* filters_scale, bf16* x, long N,
                               long H, long W, long inputs, long outputs) {
  run<Backwards>(Images{y, (H + 1) / 2, (W + 1) / 2, outputs}, Tiles(H, W), N, filters, *filters_scale, x, H, W,
                 inputs);
}

// How many factors `convolve_strided_filter_gradient` needs to work with.
void strided_filter_gradient_work(long inputs, long outputs, int64_t* values) {
  *values = kPlaces * (gradient_block(inputs, outputs) * (inputs + outputs) + 64);
}

// The gradient of the filters, [output][3][3][input] in fp32, from the images x and the outputs' gradient y. `sums`
// holds 16 x inputs x outputs floats, `work` what `strided_filter_gradient_work` says.
void convolve_strided_filter_gradient(const bf16* x, const bf16* y, float* sums, factor* work, float* gradient, long N,
                                      long H, long W, long inputs, long outputs) {
  const Images images{x, H, W, inputs}, gradients{y, (H + 1) / 2, (W + 1) / 2, outputs};
  const Tiles tiles(H, W);
  const long V = vectors_of(outputs), width = 16 * V, panels = outputs / width, slice = 4;
  const long all = N * tiles.down * tiles.across, size = inputs * outputs;
  const long block = gradient_block(inputs, outputs);
  const long plane = block * inputs + 32, gradient_plane = block * outputs + 32;
  const float scale = Factors::scale(Factors::largest(x, N * H * W * inputs), kImagesBound);
  const float y_scale = Factors::scale(Factors::largest(y, N * gradients.H * gradients.W * outputs), kGradientBound);
  factor* const v = work;
  factor* const g = work + kPlaces * plane;
#pragma omp parallel
  {
    static thread_local Scratch<bf16> nothing;
    bf16* const zeros = nothing.of(std::max(inputs, outputs));
    std::memset(zeros, 0, std::max(inputs, outputs) * sizeof(bf16));
    for (long first = 0; first < all; first += block) {
      const long count = std::min(block, all - first), pairs = (count + 1) / 2;
#pragma omp for schedule(static)
      for (long begin = 0; begin < count; begin += slice) {
        const long end = std::min(begin + slice, count);
        transform_pairs<5>(images, tiles, 4, 1, scale, first, begin, end, count, 16, zeros, v, plane,
                           [](const auto& d, auto& out) { Forwards::transform(d, out); });
        transform_pairs<2>(gradients, tiles, 2, 0, y_scale, first, begin, end, count, width, zeros, g, gradient_plane,
                           [](const auto& d, auto& out) { transform_gradient(d, out); });
      }
      // Each sum is one thread's from beginning to end, so any number of threads gives the same bits.
#pragma omp for schedule(static, 1)
      for (long job = 0; job < kFilters * panels; job++) {
        const long o = job % panels * width;
        float* const sum = sums + job / panels * size + o;
        for (long f = 0; f < kPlaces; f++) {
          if (filter_of(f) != job / panels) continue;
          const factor* const right = g + f * gradient_plane + o * pairs * 2;
          multiply_pairs(V, inputs, v + f * plane, right, pairs, sum, outputs, first || is_second(f));
        }
      }
    }
    // From the sums, [input][output], to [output][3][3][input].
#pragma omp for schedule(static)
    for (long i = 0; i < inputs; i++)
      for (long o = 0; o < outputs; o += 16)
        both_ways<kFiltersAlong, 3>(
            [&](long f) {
              return Factors::scaled(_mm512_loadu_ps(sums + f * size + i * outputs + o), 1 / (scale * y_scale));
            },
            [&](long k, __m512 taps) {
              alignas(64) float lanes[16];
              _mm512_store_ps(lanes, taps);
              for (long l = 0; l < 16; l++) gradient[((o + l) * 9L + k) * inputs + i] = lanes[l];
            },
            [](const auto& u, auto& out) { transform_filter_gradient(u, out); });
  }
}

}  // extern "C"
