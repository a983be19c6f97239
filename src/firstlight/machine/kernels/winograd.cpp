// 3x3 convolutions of channels-last bf16 images on a CPU with AVX-512 BF16, with 2.25 times fewer multiplications.
//
// Winograd's minimal filtering F(2x2, 3x3), as in Lavin and Gray 2016 (arXiv 1509.09308), section 4.1: a 4x4 patch d
// and a filter g give 2x2 outputs Y = A'[(G g G') . (B' d B)]A. Sums over channels are matrix products, one for each of
// the 16 places of a transformed patch. Everything is cut into blocks of tiles that stay in a core's own cache, since
// the transformed images are four times as large as the images and would be slower to fetch than to compute.
//
// A 2x2 tile of outputs is also a window of a 2x2 max-pool, so pooling costs no pass over memory: only the largest of
// the four is written, with its place (0 to 3) as one byte, and the gradient is spread again while it is read.
//
// Names: N images of H x W (both even where they are pooled), C channels, T tiles in a block, f one of the 16 places of
// a transformed patch.

#include <omp.h>

#include <algorithm>
#include <cstring>

#include "products.h"

namespace {

constexpr long kPlaces = 16;

// A batch of images that is read 4x4 patch by patch; `places` is null, or says where in each 2x2 window of the
// H x W image a value of the H/2 x W/2 image that lies in memory belongs.
struct Images {
  const bf16* values;
  const uint8_t* places;
  long H, W, C;
  // Tiles of 2x2 outputs; of a side of odd length the last one is half empty.
  long down() const { return (H + 1) / 2; }
  long across() const { return (W + 1) / 2; }
};

// Where the four pixels of tile t's outputs lie in the gradient of the outputs; beyond the border they are zeros.
struct Window {
  const bf16* values[4];
  const uint8_t* places;
};

// Where the 16 pixels of tile t's patch lie; beyond the border they are zeros.
struct Patch {
  const bf16* values[kPlaces];
  const uint8_t* places[kPlaces];
};

void locate(const Images& x, long t, const bf16* zeros, Patch& patch) {
  const long across = x.across(), down = x.down();
  const long n = t / (across * down);
  const long top = t / across % down * 2 - 1, left = t % across * 2 - 1;
  for (long i = 0; i < 4; i++)
    for (long j = 0; j < 4; j++) {
      const long h = top + i, w = left + j;
      const bool inside = h >= 0 && h < x.H && w >= 0 && w < x.W;
      const long at = x.places ? ((n * down + h / 2) * across + w / 2) * x.C : ((n * x.H + h) * x.W + w) * x.C;
      patch.values[4 * i + j] = inside ? x.values + at : zeros;
      // Zeros stay zeros wherever they are put, so any readable bytes serve beyond the border.
      if (x.places) patch.places[4 * i + j] = inside ? x.places + at : reinterpret_cast<const uint8_t*>(zeros);
    }
}

inline __m512 at_place(const bf16* values, const uint8_t* places, long place) {
  const __mmask16 here = _mm_cmpeq_epi8_mask(_mm_loadu_si128(reinterpret_cast<const __m128i*>(places)),
                                             _mm_set1_epi8(static_cast<char>(place)));
  return widen(_mm256_maskz_loadu_epi16(here, values));
}

// 16 channels of rows `begin` to `begin + rows` of B' d B, times `scale`; half of its rows need three rows of d only.
template <bool pooled, long begin, long rows>
inline void transform_patch(const Patch& patch, long c, float scale, __m512 (&out)[4 * rows]) {
  __m512 d[kPlaces];
#pragma GCC unroll 16
  for (long i = 0; i < kPlaces; i++) {
    const long row = i / 4, column = i % 4;
    if (rows == 2 && row == 3 - 3 * (begin / 2)) continue;
    // The patch begins at an odd row and column, so its pixel (1, 1) is place 0 of its window.
    d[i] = Factors::scaled(
        pooled ? at_place(patch.values[i] + c, patch.places[i] + c, (row + 1) % 2 * 2 + (column + 1) % 2)
               : load(patch.values[i] + c),
        scale);
  }
  __m512 b[4 * rows];
#pragma GCC unroll 4
  for (long j = 0; j < 4; j++) {
    const __m512 all[4] = {d[j] - d[8 + j], d[4 + j] + d[8 + j], d[8 + j] - d[4 + j], d[4 + j] - d[12 + j]};
#pragma GCC unroll 4
    for (long i = 0; i < rows; i++) b[4 * i + j] = all[begin + i];
  }
#pragma GCC unroll 4
  for (long i = 0; i < 4 * rows; i += 4) {
    out[i] = b[i] - b[i + 2];
    out[i + 1] = b[i + 1] + b[i + 2];
    out[i + 2] = b[i + 2] - b[i + 1];
    out[i + 3] = b[i + 1] - b[i + 3];
  }
}

// [f][tile][channel], planes `plane` apart: the left side of a product over channels.
template <bool pooled>
void transform_images(const Images& x, float scale, long first, long tiles, const bf16* zeros, factor* out,
                      long plane) {
  Patch patch;
  for (long t = 0; t < tiles; t++) {
    locate(x, first + t, zeros, patch);
    for (long c = 0; c < x.C; c += 16) {
      __m512 v[kPlaces];
      transform_patch<pooled, 0, 4>(patch, c, scale, v);
#pragma GCC unroll 16
      for (long f = 0; f < kPlaces; f++) store_factors(out + f * plane + t * x.C + c, v[f]);
    }
  }
}

// Two of the four rows of places, those of one half of a filters' gradient.
constexpr long kHalf = kPlaces / 2;

// [f][channels / 16][tile / 2][16][2], of the rows of places from `row` on: the left side of a product over tiles, of
// which these are from `begin` to `end`, both even. An odd tile out is paired with zeros.
template <long row>
void transform_image_pairs(const Images& x, float scale, long first, long begin, long end, long tiles,
                           const bf16* zeros, factor* out, long plane) {
  const long pairs = (tiles + 1) / 2;
  Patch patch, other;
  for (long t = begin; t < end; t += 2) {
    locate(x, first + t, zeros, patch);
    if (t + 1 < tiles)
      locate(x, first + t + 1, zeros, other);
    else
      std::fill(other.values, other.values + kPlaces, zeros);
    for (long c = 0; c < x.C; c += 16) {
      __m512 v[kHalf], w[kHalf];
      transform_patch<false, row, 2>(patch, c, scale, v);
      transform_patch<false, row, 2>(other, c, scale, w);
#pragma GCC unroll 8
      for (long f = 0; f < kHalf; f++) store_pairs(out + f * plane + (c / 16 * pairs + t / 2) * 32, v[f], w[f]);
    }
  }
}

void locate(const Images& y, long t, const bf16* zeros, Window& window) {
  window.places = y.places ? y.places + t * y.C : nullptr;
  const long across = y.across(), down = y.down();
  const long n = t / (across * down), top = t / across % down * 2, left = t % across * 2;
  for (long i = 0; i < 4; i++) {
    const long h = top + i / 2, w = left + i % 2;
    const bf16* pixel = y.places ? y.values + t * y.C : y.values + ((n * y.H + h) * y.W + w) * y.C;
    window.values[i] = h < y.H && w < y.W ? pixel : zeros;
  }
}

// 16 channels of the rows of A y A' from `row` on, times `scale`, for the 2x2 gradients of a tile.
template <long row>
inline void transform_gradient(const Window& window, long c, float scale, __m512 (&out)[kHalf]) {
  __m512 g[4];
#pragma GCC unroll 4
  for (long i = 0; i < 4; i++)
    g[i] = Factors::scaled(
        window.places ? at_place(window.values[i] + c, window.places + c, i) : load(window.values[i] + c), scale);
  __m512 a[4];
#pragma GCC unroll 2
  for (long j = 0; j < 2; j++) {
    a[j] = row ? g[j] - g[2 + j] : g[j];
    a[2 + j] = row ? _mm512_setzero_ps() - g[2 + j] : g[j] + g[2 + j];
  }
#pragma GCC unroll 2
  for (long i = 0; i < 2; i++) {
    out[4 * i] = a[2 * i];
    out[4 * i + 1] = a[2 * i] + a[2 * i + 1];
    out[4 * i + 2] = a[2 * i] - a[2 * i + 1];
    out[4 * i + 3] = _mm512_setzero_ps() - a[2 * i + 1];
  }
}

// [f][channels / 16 V][tile / 2][16 V][2]: the right side of the same product.
template <long row>
void transform_gradient_pairs(const Images& y, float scale, long first, long begin, long end, long tiles, long V,
                              const bf16* zeros, factor* out, long plane) {
  const long pairs = (tiles + 1) / 2, width = 16 * V;
  Window window, other;
  for (long t = begin; t < end; t += 2) {
    locate(y, first + t, zeros, window);
    if (t + 1 < tiles) locate(y, first + t + 1, zeros, other);
    for (long c = 0; c < y.C; c += 16) {
      __m512 v[kHalf], w[kHalf];
      transform_gradient<row>(window, c, scale, v);
      if (t + 1 < tiles)
        transform_gradient<row>(other, c, scale, w);
      else
        std::fill(w, w + kHalf, _mm512_setzero_ps());
      factor* to = out + ((c / width * pairs + t / 2) * width + c % width) * 2;
#pragma GCC unroll 8
      for (long f = 0; f < kHalf; f++) store_pairs(to + f * plane, v[f], w[f]);
    }
  }
}

// 16 channels of A' m A, divided by `scale`, a power of two; m's planes lie `plane` apart.
inline void transform_back(const float* m, long plane, float scale, __m512 (&y)[4]) {
  using Sums = Factors::Sums;
  Sums a[8];
#pragma GCC unroll 4
  for (long j = 0; j < 4; j++) {
    Sums s[4];
#pragma GCC unroll 4
    for (long i = 0; i < 4; i++) s[i] = reinterpret_cast<Sums>(_mm512_loadu_ps(m + (4 * i + j) * plane));
    a[j] = s[0] + s[1] + s[2];
    a[4 + j] = s[1] - s[2] - s[3];
  }
#pragma GCC unroll 2
  for (long i = 0; i < 2; i++) {
    y[2 * i] = Factors::scaled(Factors::total(a[4 * i] + a[4 * i + 1] + a[4 * i + 2]), 1 / scale);
    y[2 * i + 1] = Factors::scaled(Factors::total(a[4 * i + 1] - a[4 * i + 2] - a[4 * i + 3]), 1 / scale);
  }
}

// To which absolute values are brought where the format of the factors asks for it. Transforms make images at most 4
// times as large, filters 2.25 times and gradients 4 times, and transforming back adds up to 9 sums. Where all values
// are equal and as large as these, 1024 channels of them, or a chain of tiles, stay well below fp16's 65,504.
constexpr float kImagesBound = 2, kFiltersBound = 1, kGradientBound = 1;

// Tiles in a block, so that one transformed block of that many channels fills about half of a core's second cache.
long block_of(long channels) { return std::max(48L, 12288 / channels / 6 * 6); }

// Tiles whose transforms are kept at a time for the gradient of filters: few enough for the cache that all cores share,
// but so many where the sums are large, since each block fetches all sums, that these weigh no more than the
// transforms.
long gradient_block(long inputs, long outputs) {
  const long wanted = std::max(131072L, 2 * inputs * outputs) / (inputs + outputs);
  return std::clamp(wanted / 16 * 16, 64L, 2048L);
}

// 16 channels of G g G', times `scale`, for the filters of one output channel, whose nine weights lie `tap` apart.
inline void transform_filter(const float* g, long tap, bool flipped, float scale, __m512 (&u)[kPlaces]) {
  const __m512 half = _mm512_set1_ps(0.5f);
  __m512 w[9], a[12];
#pragma GCC unroll 9
  for (long i = 0; i < 9; i++) w[i] = Factors::scaled(_mm512_loadu_ps(g + (flipped ? 8 - i : i) * tap), scale);
#pragma GCC unroll 3
  for (long j = 0; j < 3; j++) {
    const __m512 ends = (w[j] + w[6 + j]) * half, middle = w[3 + j] * half;
    a[j] = w[j];
    a[3 + j] = ends + middle;
    a[6 + j] = ends - middle;
    a[9 + j] = w[6 + j];
  }
#pragma GCC unroll 4
  for (long i = 0; i < 4; i++) {
    const __m512 ends = (a[3 * i] + a[3 * i + 2]) * half, middle = a[3 * i + 1] * half;
    u[4 * i] = a[3 * i];
    u[4 * i + 1] = ends + middle;
    u[4 * i + 2] = ends - middle;
    u[4 * i + 3] = a[3 * i + 2];
  }
}

}  // namespace

extern "C" {

// Transform filters laid out [output][3][3][input] in fp32 to the right side of a product over the channels that a
// convolution reads: [written / 16 V][f][read / 2][16 V][2]. Forwards it reads inputs and writes outputs; for the
// gradient of the images (`backwards`) it reads outputs, writes inputs, and the filters are turned by 180 degrees.
// `scale` takes the factor by which they were multiplied.
void transform_filters(const float* filters, factor* out, float* scale, long inputs, long outputs, long backwards) {
  *scale = Factors::scale(Factors::largest(filters, 9 * inputs * outputs), kFiltersBound);
#pragma omp parallel for schedule(static)
  for (long pair = 0; pair < outputs / 2; pair++)
    for (long c = 0; c < inputs; c += 16) {
      __m512 u[2][kPlaces];
      const long o = 2 * pair;
      for (long i = 0; i < 2; i++)
        transform_filter(filters + (o + i) * 9L * inputs + c, inputs, backwards, *scale, u[i]);
      store_filters(u, out, o, c, inputs, outputs, backwards);
    }
}

// Convolve N x H x W x `inputs` with filters as transformed and scaled to N x H x W x `outputs`. With `places_in`, x is
// the gradient of a pooled image and is spread while it is read; with `places_out`, y is pooled.
void convolve(const bf16* x, const uint8_t* places_in, const factor* filters, const float* filters_scale, bf16* y,
              uint8_t* places_out, long N, long H, long W, long inputs, long outputs) {
  const Images images{x, places_in, H, W, inputs};
  const long V = vectors_of(outputs), width = 16 * V, across = images.across(), down = images.down();
  const long all = N * down * across, filter_plane = inputs * width;
  const long block = block_of(inputs), values = N * H * W * inputs / (places_in ? 4 : 1);
  const float scale = Factors::scale(Factors::largest(x, values), kImagesBound);
  // Planes one cache line further apart than a power of two do not compete for the same places in the cache.
  const long plane = block * inputs + 32, sum_plane = block * width + 16;
#pragma omp parallel
  {
    static thread_local Scratch<factor> transformed;
    static thread_local Scratch<bf16> nothing;
    static thread_local Scratch<float> products;
    factor* v = transformed.of(kPlaces * plane);
    float* m = products.of(kPlaces * sum_plane);
    bf16* zeros = nothing.of(inputs);
    std::memset(zeros, 0, inputs * sizeof(bf16));
#pragma omp for schedule(dynamic)
    for (long first = 0; first < all; first += block) {
      const long tiles = std::min(block, all - first);
      if (places_in)
        transform_images<true>(images, scale, first, tiles, zeros, v, plane);
      else
        transform_images<false>(images, scale, first, tiles, zeros, v, plane);
      for (long o = 0; o < outputs; o += width) {
        for (long f = 0; f < kPlaces; f++)
          multiply<To::sums>(V, tiles, reinterpret_cast<const uint32_t*>(v + f * plane), inputs / 2, 1,
                             filters + (o / width * kPlaces + f) * filter_plane, inputs / 2, m + f * sum_plane, width);
        for (long t = 0; t < tiles; t++) {
          const long tile = first + t, top = tile / across % down * 2, left = tile % across * 2;
          const long corner = (tile / (across * down) * H + top) * W + left;
          for (long c = 0; c < width; c += 16) {
            __m512 out[4];
            transform_back(m + t * width + c, sum_plane, scale * *filters_scale, out);
            if (places_out) {
              __m512 largest = out[0];
              __m128i place = _mm_setzero_si128();
              for (long i = 1; i < 4; i++) {
                // What is not a number counts as the largest, so that a diverging run is seen to diverge.
                const __mmask16 larger =
                    _mm512_cmp_ps_mask(out[i], largest, _CMP_GT_OQ) | _mm512_cmp_ps_mask(out[i], out[i], _CMP_UNORD_Q);
                largest = _mm512_mask_mov_ps(largest, larger, out[i]);
                place = _mm_mask_mov_epi8(place, larger, _mm_set1_epi8(static_cast<char>(i)));
              }
              const long at = tile * outputs + o + c;
              store(y + at, largest);
              _mm_storeu_si128(reinterpret_cast<__m128i*>(places_out + at), place);
            } else {
              for (long i = 0; i < 4; i++)
                if (top + i / 2 < H && left + i % 2 < W)
                  store(y + (corner + i / 2 * W + i % 2) * outputs + o + c, out[i]);
            }
          }
        }
      }
    }
  }
}

// How many factors `convolve_filter_gradient` needs to work with.
void filter_gradient_work(long inputs, long outputs, int64_t* values) {
  *values = kPlaces * (gradient_block(inputs, outputs) * (inputs + outputs) + 64);
}

// The gradient of the filters, [output][3][3][input] in fp32, from the images x and the outputs' gradient y, which
// `places` spreads where the outputs were pooled. `sums` holds 16 x inputs x outputs floats, `work` what
// `filter_gradient_work` says.
void convolve_filter_gradient(const bf16* x, const bf16* y, const uint8_t* places, float* sums, factor* work,
                              float* gradient, long N, long H, long W, long inputs, long outputs) {
  const Images images{x, nullptr, H, W, inputs}, gradients{y, places, H, W, outputs};
  const long V = vectors_of(outputs), width = 16 * V, slice = 16;
  const long all = N * images.down() * images.across(), size = inputs * outputs;
  const long block = gradient_block(inputs, outputs);
  const long plane = block * inputs + 32, gradient_plane = block * outputs + 32;
  const float scale = Factors::scale(Factors::largest(x, N * H * W * inputs), kImagesBound);
  const float y_scale = Factors::scale(Factors::largest(y, N * H * W * outputs / (places ? 4 : 1)), kGradientBound);
#pragma omp parallel
  {
    static thread_local Scratch<bf16> nothing;
    bf16* zeros = nothing.of(std::max(inputs, outputs));
    std::memset(zeros, 0, std::max(inputs, outputs) * sizeof(bf16));
    // One half of the threads for one half of the places: what a thread transforms stays in its own cache, or in those
    // of its half. A thread alone does one half after the other.
    const long threads = omp_get_num_threads(), thread = omp_get_thread_num();
    const long split = threads / 2;
    for (long half = 0; half < 2; half++) {
      const long members = threads == 1 ? 1 : half ? threads - split : split;
      const long member = threads == 1 ? 0 : half ? thread - split : thread;
      if (member < 0 || member >= members) continue;
      factor* const v = work + half * kHalf * (plane + gradient_plane);
      factor* const g = v + kHalf * plane;
      for (long first = 0; first < all; first += block) {
        const long tiles = std::min(block, all - first), pairs = (tiles + 1) / 2;
        for (long begin = member * slice; begin < tiles; begin += members * slice) {
          const long end = std::min(begin + slice, tiles);
          if (half) {
            transform_image_pairs<2>(images, scale, first, begin, end, tiles, zeros, v, plane);
            transform_gradient_pairs<2>(gradients, y_scale, first, begin, end, tiles, V, zeros, g, gradient_plane);
          } else {
            transform_image_pairs<0>(images, scale, first, begin, end, tiles, zeros, v, plane);
            transform_gradient_pairs<0>(gradients, y_scale, first, begin, end, tiles, V, zeros, g, gradient_plane);
          }
        }
        if (threads > 2) {
#pragma omp barrier
        }
        // Each sum is one thread's from beginning to end, so any number of threads gives the same bits.
        const long panels = outputs / width;
        for (long job = member; job < kHalf * panels; job += members) {
          const long f = job / panels, o = job % panels * width;
          float* const sum = sums + (half * kHalf + f) * size + o;
          const factor* right = g + f * gradient_plane + o * pairs * 2;
          multiply_pairs(V, inputs, v + f * plane, right, pairs, sum, outputs, first);
        }
        if (threads > 2) {
#pragma omp barrier
        }
      }
    }
#pragma omp barrier
    // G' u G of each filter: [input][output] in, [output][3][3][input] out.
#pragma omp for schedule(static)
    for (long i = 0; i < inputs; i++)
      for (long o = 0; o < outputs; o += 16) {
        __m512 u[kPlaces], a[12];
        const long at = i * outputs + o;
        for (long f = 0; f < kPlaces; f++)
          u[f] = Factors::scaled(_mm512_loadu_ps(sums + f * size + at), 1 / (scale * y_scale));
        const __m512 half = _mm512_set1_ps(0.5f);
        for (long j = 0; j < 4; j++) {
          a[j] = u[j] + (u[4 + j] + u[8 + j]) * half;
          a[4 + j] = (u[4 + j] - u[8 + j]) * half;
          a[8 + j] = u[12 + j] + (u[4 + j] + u[8 + j]) * half;
        }
        for (long r = 0; r < 3; r++) {
          const __m512 sum = (a[4 * r + 1] + a[4 * r + 2]) * half;
          const __m512 taps[3] = {a[4 * r] + sum, (a[4 * r + 1] - a[4 * r + 2]) * half, a[4 * r + 3] + sum};
          for (long k = 0; k < 3; k++) {
            alignas(64) float lanes[16];
            _mm512_store_ps(lanes, taps[k]);
            for (long l = 0; l < 16; l++) gradient[((o + l) * 9L + 3 * r + k) * inputs + i] = lanes[l];
          }
        }
      }
  }
}

}  // extern "C"
