// 3x3 convolutions of channels-last fp32 images, with four times fewer multiplications.
//
// Winograd's minimal filtering F(4x4, 3x3), as in Lavin and Gray 2016 (arXiv 1509.09308), section 4.3: a 6x6 patch d
// and a filter g give 4x4 outputs Y = A'[(G g G') . (B' d B)]A. The transforms multiply by up to 8 and so lose up to
// three bits of fp32's 24. Sums over channels are matrix products, one for each of the 36 places of a transformed
// patch.
//
// A 4x4 tile of outputs is also four windows of a 2x2 max-pool: only the largest of each is written, with its place (0
// to 3) as one byte, and the gradient is spread again while it is read.
//
// Names: N images of H x W (both even where they are pooled), C channels (a multiple of 16), T tiles in a block, f one
// of the 36 places of a transformed patch.

#include <omp.h>

#include <algorithm>
#include <cstring>

#include "products_fp32.h"
#include "tiles.h"

namespace {

using Tile = Tile4;
constexpr long kTile = Tile::kTile, kSide = Tile::kSide, kPlaces = Tile::kPlaces, kOutputs = kTile * kTile;

// [f][tile][channel], planes `plane` apart, of tiles `begin` to `end` of a block.
template <bool pooled>
void transform_images(const Images<float, kTile>& x, long first, long begin, long end, const float* zeros, float* out,
                      long plane) {
  Square<float, kTile, pooled, kSide> patch;
  for (long t = begin; t < end; t++) {
    patch.locate(x, first + t, zeros);
    for (long c = 0; c < x.C; c += kLanes)
      patch.channels(c, [&](auto pixel) {
        both_ways<6, 6>(
            pixel, [&](long f, vec v) { store(out + f * plane + t * x.C + c, v); },
            [](const vec(&d)[6], vec(&o)[6]) { Tile::image(d, o); });
      });
  }
}

// [f][channels / width][tile][width]: the right side of a product over the tiles of a block.
template <bool pooled>
void transform_gradients(const Images<float, kTile>& y, long first, long begin, long end, long tiles, long width,
                         const float* zeros, float* out, long plane) {
  Square<float, kTile, pooled, kTile> square;
  for (long t = begin; t < end; t++) {
    square.locate(y, first + t, zeros);
    for (long c = 0; c < y.C; c += kLanes) {
      float* const to = out + (c / width * tiles + t) * width + c % width;
      square.channels(c, [&](auto pixel) {
        both_ways<4, 6>(
            pixel, [&](long f, vec v) { store(to + f * plane, v); },
            [](const vec(&g)[4], vec(&o)[6]) { Tile::gradient(g, o); });
      });
    }
  }
}

// Tiles in a block: enough that the transformed filters, which each block fetches, are not what it waits for.
constexpr long kBlock = 48;

// Tiles whose transforms are kept at a time for the gradient of filters: each block fetches all sums.
long gradient_block(long inputs, long outputs) { return inputs + outputs > 256 ? 128 : 32; }

// Groups of tiles of which each has sums of its own, where those of narrow layers stay in the cache of a core: then no
// core reads what another has transformed. As many on every machine, so that any number of threads gives the same bits.
constexpr long kGroups = 16, kNarrow = 2048;
long groups_of(long inputs, long outputs) { return inputs * outputs <= kNarrow ? kGroups : 1; }

}  // namespace

extern "C" {

// Transform filters laid out [output][3][3][input] to the right side of a product over the channels that a convolution
// reads: [written / width][f][read][width]. Forwards it reads inputs and writes outputs; for the gradient of the images
// (`backwards`) it reads outputs, writes inputs, and the filters are turned by 180 degrees. Nothing needs a `scale`.
void transform_filters(const float* filters, float* out, float* scale, long inputs, long outputs, long backwards) {
  *scale = 1.0f;
  const long reads = backwards ? outputs : inputs, writes = backwards ? inputs : outputs;
  const long width = kLanes * vectors_of(writes), plane = reads * width;
#pragma omp parallel for schedule(static)
  for (long o = 0; o < outputs; o++)
    for (long c = 0; c < inputs; c += kLanes) {
      vec u[kPlaces];
      both_ways<3, 6>([&](long k) { return load(filters + (o * 9 + (backwards ? 8 - k : k)) * inputs + c); },
                      [&](long f, vec v) { u[f] = v; }, [](const vec(&g)[3], vec(&t)[6]) { Tile::filter(g, t); });
      if (backwards) {
        float* const to = out + c / width * kPlaces * plane + o * width + c % width;
        for (long f = 0; f < kPlaces; f++) store(to + f * plane, u[f]);
      } else {
        float* const to = out + o / width * kPlaces * plane + c * width + o % width;
        for (long f = 0; f < kPlaces; f++)
          for (long k = 0; k < kLanes; k++) to[f * plane + k * width] = u[f][k];
      }
    }
}

// Convolve N x H x W x `inputs` with transformed filters to N x H x W x `outputs`. With `places_in`, x is the gradient
// of a pooled image and is spread while it is read; with `places_out`, y is pooled.
void convolve(const float* x, const uint8_t* places_in, const float* filters, const float*, float* y,
              uint8_t* places_out, long N, long H, long W, long inputs, long outputs) {
  const Images<float, kTile> images{x, places_in, H, W, inputs};
  const long V = vectors_of(outputs), width = kLanes * V, across = images.across(), down = images.down();
  // Products are transformed back a panel at a time: the wider it is, the less often a block is read again.
  const long panel = outputs % 64 == 0 ? 64 : outputs % 32 == 0 ? 32 : 16;
  const long tiles_of_all = N * down * across, filter_plane = inputs * width;
  // Planes one cache line further apart than a power of two do not compete for the same places in the cache.
  const long plane = kBlock * inputs + 16, sum_plane = kBlock * panel + 16;
#pragma omp parallel
  {
    static thread_local Scratch<float> transformed, nothing, products;
    float* const v = transformed.of(kPlaces * plane);
    float* const m = products.of(kPlaces * sum_plane);
    float* const zeros = nothing.of(inputs);
    std::memset(zeros, 0, inputs * sizeof(float));
#pragma omp for schedule(dynamic)
    for (long first = 0; first < tiles_of_all; first += kBlock) {
      const long tiles = std::min(kBlock, tiles_of_all - first);
      if (places_in)
        transform_images<true>(images, first, 0, tiles, zeros, v, plane);
      else
        transform_images<false>(images, first, 0, tiles, zeros, v, plane);
      for (long o = 0; o < outputs; o += panel) {
        for (long f = 0; f < kPlaces; f++)
          for (long part = 0; part < panel; part += width)
            multiply<false>(V, tiles, v + f * plane, inputs, 1,
                            filters + ((o + part) / width * kPlaces + f) * filter_plane, inputs,
                            m + f * sum_plane + part, panel);
        for (long t = 0; t < tiles; t++) {
          const long tile = first + t, n = tile / (across * down);
          const long top = tile / across % down * kTile, left = tile % across * kTile;
          for (long c = 0; c < panel; c += kLanes) {
            vec half[4 * kSide], out[kOutputs];
            for (long j = 0; j < kSide; j++) {
              vec in[6], column[4];
              for (long i = 0; i < kSide; i++) in[i] = load(m + (kSide * i + j) * sum_plane + t * panel + c);
              Tile::back(in, column);
              for (long i = 0; i < kTile; i++) half[kSide * i + j] = column[i];
            }
            for (long i = 0; i < kTile; i++) {
              vec in[6], row[4];
              for (long j = 0; j < kSide; j++) in[j] = half[kSide * i + j];
              Tile::back(in, row);
              for (long j = 0; j < kTile; j++) out[kTile * i + j] = row[j];
            }
            write_tile<kTile>(out, y, places_out, n, top, left, H, W, outputs, o + c);
          }
        }
      }
    }
  }
}

// How many floats `convolve_filter_gradient` needs to work with.
void filter_gradient_work(long inputs, long outputs, int64_t* values) {
  const long groups = groups_of(inputs, outputs), block = gradient_block(inputs, outputs);
  *values = kPlaces * (groups > 1 ? groups * inputs * outputs : block * (inputs + outputs) + 32);
}

// The gradient of the filters, [output][3][3][input], from the images x and the outputs' gradient y, which `places`
// spreads where the outputs were pooled. `sums` holds 36 x inputs x outputs floats, `work` what `filter_gradient_work`
// says.
void convolve_filter_gradient(const float* x, const float* y, const uint8_t* places, float* sums, float* work,
                              float* gradient, long N, long H, long W, long inputs, long outputs) {
  const Images<float, kTile> images{x, nullptr, H, W, inputs}, gradients{y, places, H, W, outputs};
  const long V = vectors_of(outputs), width = kLanes * V, panels = outputs / width, slice = 4;
  const long tiles_of_all = N * images.down() * images.across(), size = inputs * outputs;
  const long block = gradient_block(inputs, outputs);
  const long plane = block * inputs + 16, gradient_plane = block * outputs + 16;
  const long groups = groups_of(inputs, outputs);
  const auto transform = [&](long first, long begin, long end, long tiles, const float* zeros, float* v, float* g) {
    transform_images<false>(images, first, begin, end, zeros, v, plane);
    if (places)
      transform_gradients<true>(gradients, first, begin, end, tiles, width, zeros, g, gradient_plane);
    else
      transform_gradients<false>(gradients, first, begin, end, tiles, width, zeros, g, gradient_plane);
  };
  // Add what a block gives to the sums of one place and one panel of outputs, or set them.
  const auto add = [&](long job, long tiles, const float* v, const float* g, float* sums_of, bool is_first) {
    const long f = job / panels, o = job % panels * width;
    const float* const right = g + f * gradient_plane + o * tiles;
    float* const sum = sums_of + f * size + o;
    if (is_first)
      multiply<false>(V, inputs, v + f * plane, 1, inputs, right, tiles, sum, outputs);
    else
      multiply<true>(V, inputs, v + f * plane, 1, inputs, right, tiles, sum, outputs);
  };
#pragma omp parallel
  {
    static thread_local Scratch<float> nothing, own;
    float* const zeros = nothing.of(std::max(inputs, outputs));
    std::memset(zeros, 0, std::max(inputs, outputs) * sizeof(float));
    if (groups > 1) {
      float* const v = own.of(kPlaces * (plane + gradient_plane));
      float* const g = v + kPlaces * plane;
#pragma omp for schedule(dynamic)
      for (long group = 0; group < groups; group++) {
        const long begin = group * tiles_of_all / groups, end = (group + 1) * tiles_of_all / groups;
        float* const mine = work + group * kPlaces * size;
        if (begin == end) std::memset(mine, 0, kPlaces * size * sizeof(float));
        for (long first = begin; first < end; first += block) {
          const long tiles = std::min(block, end - first);
          transform(first, 0, tiles, tiles, zeros, v, g);
          for (long job = 0; job < kPlaces * panels; job++) add(job, tiles, v, g, mine, first == begin);
        }
      }
#pragma omp for schedule(static)
      for (long i = 0; i < kPlaces * size; i += kLanes) {
        vec sum = load(work + i);
        for (long group = 1; group < groups; group++) sum += load(work + group * kPlaces * size + i);
        store(sums + i, sum);
      }
    } else {
      float* const v = work;
      float* const g = work + kPlaces * plane;
      for (long first = 0; first < tiles_of_all; first += block) {
        const long tiles = std::min(block, tiles_of_all - first);
#pragma omp for schedule(static)
        for (long begin = 0; begin < tiles; begin += slice)
          transform(first, begin, std::min(begin + slice, tiles), tiles, zeros, v, g);
        // Each sum is one thread's from beginning to end, so any number of threads gives the same bits.
#pragma omp for schedule(static)
        for (long job = 0; job < kPlaces * panels; job++) add(job, tiles, v, g, sums, first == 0);
      }
    }
    // G' u G of each filter: [input][output] in, [output][3][3][input] out.
#pragma omp for schedule(static)
    for (long i = 0; i < inputs; i++)
      for (long o = 0; o < outputs; o += kLanes)
        both_ways<6, 3>([&](long f) { return load(sums + f * size + i * outputs + o); },
                        [&](long k, vec v) {
                          for (long l = 0; l < kLanes; l++) gradient[((o + l) * 9L + k) * inputs + i] = v[l];
                        },
                        [](const vec(&m)[6], vec(&t)[3]) { Tile::filter_gradient(m, t); });
  }
}

}  // extern "C"
