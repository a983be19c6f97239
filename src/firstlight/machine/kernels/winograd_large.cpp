// 3x3 convolutions of channels-last bf16 images and their gradients, with 4 or 3.24 times fewer multiplications.
//
// By Winograd's minimal filtering F(4x4, 3x3), or F(3x3, 3x3) where the sides of the images are multiples of 3 alone.
// The transforms cost up to three of bf16's eight bits. Their errors differ from tile to tile, and a step adds up the
// gradients of all tiles of a batch: beside the difference between two batches they are small. Outputs take these tiles
// only where a network that trains asks for them.
//
// Names as in winograd.cpp; a tile has `tile` x `tile` outputs.

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "products.h"
#include "tiles.h"

namespace {

// [f][channels / width][tile / 2][width][2] of tiles `begin` to `end` of a block, both even, planes `plane` apart: one
// side of a product over tiles, of the rows of places from `row` on. An odd tile out is paired with zeros.
template <class Tile, long row, bool pooled, long side, class Transform>
void transform_pairs(const Images<bf16, Tile::kTile>& x, long first, long begin, long end, long tiles, long width,
                     const bf16* zeros, factor* out, long plane, Transform transform) {
  constexpr long kSide = Tile::kSide, kRows = (kSide + 1) / 2;
  const long pairs = (tiles + 1) / 2;
  Square<bf16, Tile::kTile, pooled, side> one, other;
  for (long t = begin; t < end; t += 2) {
    one.locate(x, first + t, zeros);
    if (t + 1 < tiles)
      other.locate(x, first + t + 1, zeros);
    else
      other.clear(zeros);
    for (long c = 0; c < x.C; c += kLanes) {
      factor* const to = out + ((c / width * pairs + t / 2) * width + c % width) * 2;
      vec v[kRows * kSide];
      one.channels(c, [&](auto pixel) {
        both_ways<side, kSide, row, kRows>(pixel, [&](long f, vec lanes) { v[f] = lanes; }, transform);
      });
      other.channels(c, [&](auto pixel) {
        both_ways<side, kSide, row, kRows>(
            pixel, [&](long f, vec lanes) { store_pairs(to + f * plane, v[f], lanes); }, transform);
      });
    }
  }
}

// Tiles whose transforms are kept at a time: few enough for the cache that all cores share, but so many where the sums
// are large, since each block fetches all sums, that these weigh no more than the transforms.
long gradient_block(long inputs, long outputs) {
  const long wanted = std::max(65536L, 2 * inputs * outputs) / (inputs + outputs);
  return std::clamp(wanted / 16 * 16, 32L, 1024L);
}

// Tiles in a block, so that one transformed block of that many channels fills about half of a core's second cache.
long block_of(long channels) { return std::max(36L, 9216L / channels / 6 * 6); }

template <class Tile>
void filter_gradient(const bf16* x, const bf16* y, const uint8_t* places, float* sums, factor* work, float* gradient,
                     long N, long H, long W, long inputs, long outputs) {
  constexpr long kTile = Tile::kTile, kSide = Tile::kSide, kPlaces = Tile::kPlaces;
  constexpr long kRows = (kSide + 1) / 2;  // of places that one half of the threads transforms
  const Images<bf16, kTile> images{x, nullptr, H, W, inputs}, gradients{y, places, H, W, outputs};
  const long V = vectors_of(outputs), width = 16 * V, panels = outputs / width, slice = 8;
  const long all = N * images.down() * images.across(), size = inputs * outputs;
  const long block = gradient_block(inputs, outputs);
  const long plane = block * inputs + 32, gradient_plane = block * outputs + 32;
  const auto transform = [&](auto row, long first, long begin, long end, long tiles, const bf16* zeros, factor* v,
                             factor* g) {
    const auto of_image = [](const vec(&d)[kSide], vec(&o)[kSide]) { Tile::image(d, o); };
    const auto of_gradient = [](const vec(&d)[kTile], vec(&o)[kSide]) { Tile::gradient(d, o); };
    transform_pairs<Tile, row, false, kSide>(images, first, begin, end, tiles, 16, zeros, v, plane, of_image);
    if (places)
      transform_pairs<Tile, row, true, kTile>(gradients, first, begin, end, tiles, width, zeros, g, gradient_plane,
                                              of_gradient);
    else
      transform_pairs<Tile, row, false, kTile>(gradients, first, begin, end, tiles, width, zeros, g, gradient_plane,
                                               of_gradient);
  };
#pragma omp parallel
  {
    static thread_local Scratch<bf16> nothing;
    bf16* const zeros = nothing.of(std::max(inputs, outputs));
    std::memset(zeros, 0, std::max(inputs, outputs) * sizeof(bf16));
    // One half of the threads for one half of the places: what a thread transforms stays in its own cache, or in those
    // of its half. A thread alone does one half after the other. Of five rows of places both halves transform the
    // third.
    const long threads = omp_get_num_threads(), thread = omp_get_thread_num(), split = threads / 2;
    for (long half = 0; half < 2; half++) {
      const long members = threads == 1 ? 1 : half ? threads - split : split;
      const long member = threads == 1 ? 0 : half ? thread - split : thread;
      if (member < 0 || member >= members) continue;
      factor* const v = work + half * kRows * kSide * (plane + gradient_plane);
      factor* const g = v + kRows * kSide * plane;
      const long row = half ? kSide - kRows : 0;
      const long begin_place = half ? (kPlaces + 1) / 2 : 0, end_place = half ? kPlaces : (kPlaces + 1) / 2;
      for (long first = 0; first < all; first += block) {
        const long tiles = std::min(block, all - first), pairs = (tiles + 1) / 2;
        for (long begin = member * slice; begin < tiles; begin += members * slice) {
          const long end = std::min(begin + slice, tiles);
          if (half)
            transform(std::integral_constant<long, kSide - kRows>(), first, begin, end, tiles, zeros, v, g);
          else
            transform(std::integral_constant<long, 0>(), first, begin, end, tiles, zeros, v, g);
        }
        if (threads > 2) {
#pragma omp barrier
        }
        // Each sum is one thread's from beginning to end, so any number of threads gives the same bits.
        for (long job = begin_place * panels + member; job < end_place * panels; job += members) {
          const long f = job / panels, o = job % panels * width, here = f - row * kSide;
          float* const sum = sums + f * size + o;
          const factor* const right = g + here * gradient_plane + o * pairs * 2;
          multiply_pairs(V, inputs, v + here * plane, right, pairs, sum, outputs, first);
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
      for (long o = 0; o < outputs; o += kLanes)
        both_ways<kSide, 3>([&](long f) { return load(sums + f * size + i * outputs + o); },
                            [&](long k, vec lanes) {
                              for (long l = 0; l < kLanes; l++) gradient[((o + l) * 9L + k) * inputs + i] = lanes[l];
                            },
                            [](const vec(&m)[kSide], vec(&t)[3]) { Tile::filter_gradient(m, t); });
  }
}

// As `transform_filters` of winograd.cpp: to the right side of a product over the channels that are read.
template <class Tile>
void transform_filters(const float* filters, factor* out, long inputs, long outputs, bool backwards) {
  constexpr long kSide = Tile::kSide, kPlaces = Tile::kPlaces;
#pragma omp parallel for schedule(static)
  for (long pair = 0; pair < outputs / 2; pair++)
    for (long c = 0; c < inputs; c += kLanes) {
      __m512 u[2][kPlaces];
      for (long i = 0; i < 2; i++)
        both_ways<3, kSide>(
            [&](long k) { return load(filters + ((2 * pair + i) * 9 + (backwards ? 8 - k : k)) * inputs + c); },
            [&](long f, vec v) { u[i][f] = v; }, [](const vec(&g)[3], vec(&t)[kSide]) { Tile::filter(g, t); });
      store_filters(u, out, 2 * pair, c, inputs, outputs, backwards);
    }
}

// [f][tile][channel], planes `plane` apart: the left side of a product over channels.
template <class Tile, bool pooled>
void transform_images(const Images<bf16, Tile::kTile>& x, long first, long tiles, const bf16* zeros, factor* out,
                      long plane) {
  constexpr long kSide = Tile::kSide;
  Square<bf16, Tile::kTile, pooled, kSide> patch;
  for (long t = 0; t < tiles; t++) {
    patch.locate(x, first + t, zeros);
    for (long c = 0; c < x.C; c += kLanes)
      patch.channels(c, [&](auto pixel) {
        both_ways<kSide, kSide>(
            pixel, [&](long f, vec lanes) { store_factors(out + f * plane + t * x.C + c, lanes); },
            [](const vec(&d)[kSide], vec(&o)[kSide]) { Tile::image(d, o); });
      });
  }
}

template <class Tile>
void convolve(const bf16* x, const uint8_t* places_in, const factor* filters, bf16* y, uint8_t* places_out, long N,
              long H, long W, long reads, long writes) {
  constexpr long kTile = Tile::kTile, kSide = Tile::kSide, kPlaces = Tile::kPlaces;
  const Images<bf16, Tile::kTile> images{x, places_in, H, W, reads};
  const long V = vectors_of(writes), width = 16 * V, across = images.across(), down = images.down();
  const long all = N * down * across, filter_plane = reads * width, block = block_of(reads);
  // Planes one cache line further apart than a power of two do not compete for the same places in the cache.
  const long plane = block * reads + 32, sum_plane = block * width + 16;
#pragma omp parallel
  {
    static thread_local Scratch<factor> transformed;
    static thread_local Scratch<bf16> nothing;
    static thread_local Scratch<float> products;
    factor* const v = transformed.of(kPlaces * plane);
    float* const m = products.of(kPlaces * sum_plane);
    bf16* const zeros = nothing.of(reads);
    std::memset(zeros, 0, reads * sizeof(bf16));
#pragma omp for schedule(dynamic)
    for (long first = 0; first < all; first += block) {
      const long tiles = std::min(block, all - first);
      if (places_in)
        transform_images<Tile, true>(images, first, tiles, zeros, v, plane);
      else
        transform_images<Tile, false>(images, first, tiles, zeros, v, plane);
      for (long o = 0; o < writes; o += width) {
        for (long f = 0; f < kPlaces; f++)
          multiply<To::sums>(V, tiles, reinterpret_cast<const uint32_t*>(v + f * plane), reads / 2, 1,
                             filters + (o / width * kPlaces + f) * filter_plane, reads / 2, m + f * sum_plane, width);
        for (long t = 0; t < tiles; t++) {
          const long at = first + t, n = at / (across * down);
          const long top = at / across % down * kTile, left = at % across * kTile;
          for (long c = 0; c < width; c += kLanes) {
            vec out[kTile * kTile];
            both_ways<kSide, kTile>([&](long f) { return load(m + f * sum_plane + t * width + c); },
                                    [&](long k, vec lanes) { out[k] = lanes; },
                                    [](const vec(&s)[kSide], vec(&r)[kTile]) { Tile::back(s, r); });
            write_tile<kTile>(out, y, places_out, n, top, left, H, W, writes, o + c);
          }
        }
      }
    }
  }
}

}  // namespace

extern "C" {

// How many factors the gradient of the filters needs to work with.
void large_filter_gradient_work(long tile, long inputs, long outputs, int64_t* values) {
  *values = 2 * ((tile + 3) / 2) * (tile + 2) * (gradient_block(inputs, outputs) * (inputs + outputs) + 64);
}

// The gradient of the filters, [output][3][3][input] in fp32, from the images x and the outputs' gradient y, which
// `places` spreads where the outputs were pooled. H and W are multiples of the tile, 4 or 3. `sums` holds inputs x
// outputs floats for each of the (tile + 2)^2 places, `work` what `large_filter_gradient_work` says.
void large_filter_gradient(long tile, const bf16* x, const bf16* y, const uint8_t* places, float* sums, factor* work,
                           float* gradient, long N, long H, long W, long inputs, long outputs) {
  (tile == 4 ? filter_gradient<CarefulTile4> : filter_gradient<Tile3>)(x, y, places, sums, work, gradient, N, H, W,
                                                                       inputs, outputs);
}

// As `transform_filters` of winograd.cpp, for the (tile + 2)^2 places of a larger tile; nothing is scaled.
void large_transform_filters(long tile, const float* filters, factor* out, long inputs, long outputs, long backwards) {
  (tile == 4 ? transform_filters<CarefulTile4> : transform_filters<Tile3>)(filters, out, inputs, outputs, backwards);
}

// As `convolve` of winograd.cpp, in larger tiles. H and W are multiples of the tile, which is 4 where there is
// `places_out`.
void large_convolve(long tile, const bf16* x, const uint8_t* places_in, const factor* filters, bf16* y,
                    uint8_t* places_out, long N, long H, long W, long inputs, long outputs) {
  (tile == 4 ? convolve<CarefulTile4> : convolve<Tile3>)(x, places_in, filters, y, places_out, N, H, W, inputs,
                                                         outputs);
}

}  // extern "C"
