// What Winograd's minimal filtering F(4x4, 3x3) and F(3x3, 3x3) read and write, and their transforms of one direction,
// as in Lavin and Gray 2016 (arXiv 1509.09308), section 4. `load` and `store` of the images' values have to be declared
// before.

#pragma once

#include "both_ways.h"
#include "vector.h"

namespace {

// A batch of images; `places` is null, or says where in each 2x2 window of the H x W image a value of the H/2 x W/2
// image that lies in memory belongs.
template <class Value, long tile>
struct Images {
  const Value* values;
  const uint8_t* places;
  long H, W, C;
  // Tiles of outputs; the last one of a side may reach beyond the border.
  long down() const { return (H + tile - 1) / tile; }
  long across() const { return (W + tile - 1) / tile; }
};

// What a square of `side` x `side` pixels reads: each pixel, or, of a pooled image whose tiles begin at whole windows,
// each 2x2 window that has a part in it. Beyond the border there are zeros.
template <class Value, long tile, bool pooled, long side>
struct Square {
  static constexpr bool kWindows = pooled && tile % 2 == 0;
  // A square of a tile begins with it, and a patch a pixel before it, so that it has half windows around it.
  static constexpr long kBefore = side > tile ? 1 : 0, kStep = kWindows ? 2 : 1;
  static constexpr long kAcross = kWindows ? side / 2 + kBefore : side;
  const Value* values[kAcross * kAcross];
  const uint8_t* places[pooled ? kAcross * kAcross : 1];
  int32_t place[pooled ? kAcross * kAcross : 1];  // of each pixel in its window

  void locate(const Images<Value, tile>& x, long t, const Value* zeros) {
    const long across = x.across(), down = x.down(), n = t / (across * down), H = x.H / kStep, W = x.W / kStep;
    const long top = t / across % down * tile / kStep - kBefore, left = t % across * tile / kStep - kBefore;
    for (long i = 0; i < kAcross; i++)
      for (long j = 0; j < kAcross; j++) {
        const long h = top + i, w = left + j, k = kAcross * i + j;
        const bool inside = h >= 0 && h < H && w >= 0 && w < W, halved = pooled && !kWindows;
        const long at = (halved ? (n * (H / 2) + h / 2) * (W / 2) + w / 2 : (n * H + h) * W + w) * x.C;
        values[k] = inside ? x.values + at : zeros;
        // Zeros stay zeros wherever they are put, so any readable bytes serve beyond the border.
        if (pooled) places[k] = inside ? x.places + at : reinterpret_cast<const uint8_t*>(zeros);
        if (halved) place[k] = static_cast<int32_t>(h % 2 * 2 + w % 2);
      }
  }

  // Read zeros everywhere.
  void clear(const Value* zeros) {
    for (const Value*& value : values) value = zeros;
    for (const uint8_t*& bytes : places) bytes = reinterpret_cast<const uint8_t*>(zeros);
  }

  // Call `use` with what reads channels c to c + kLanes of the pixel at i, j, given as side * i + j.
  template <class Use>
  void channels(long c, Use use) const {
    if constexpr (kWindows) {
      ints where_in[kAcross * kAcross];
      for (long k = 0; k < kAcross * kAcross; k++) where_in[k] = load_places(places[k] + c);
      use([&](long k) {
        const long i = k / side + kBefore, j = k % side + kBefore, window = i / 2 * kAcross + j / 2;
        return where(where_in[window] == static_cast<int32_t>(i % 2 * 2 + j % 2), load(values[window] + c));
      });
    } else if constexpr (pooled) {
      use([&](long k) { return where(load_places(places[k] + c) == place[k], load(values[k] + c)); });
    } else {
      use([&](long k) { return load(values[k] + c); });
    }
  }
};

// Write kLanes channels, from c on, of a tile's outputs at `top` and `left` of image n, as far as the image goes, to y,
// N x H x W x C. With `places`, which an odd tile does not take, the largest of each 2x2 window goes to y, N x H/2 x
// W/2 x C, and its place there.
template <long tile, class Value>
inline void write_tile(const vec (&out)[tile * tile], Value* y, uint8_t* places, long n, long top, long left, long H,
                       long W, long C, long c) {
  if (!places) {
    for (long i = 0; i < tile && top + i < H; i++)
      for (long j = 0; j < tile && left + j < W; j++)
        store(y + ((n * H + top + i) * W + left + j) * C + c, out[tile * i + j]);
    return;
  }
  for (long i = 0; i + 1 < tile && top + i < H; i += 2)
    for (long j = 0; j + 1 < tile && left + j < W; j += 2) {
      vec largest = out[tile * i + j];
      ints place = {};
      for (int32_t k = 1; k < 4; k++) {
        const vec other = out[tile * (i + k / 2) + j + k % 2];
        // What is not a number counts as the largest, so that a diverging run is seen to diverge.
        const ints larger = (other > largest) | (other != other);
        largest = choose(larger, other, largest);
        place = (larger & k) | (~larger & place);
      }
      const long at = ((n * (H / 2) + (top + i) / 2) * (W / 2) + (left + j) / 2) * C + c;
      store(y + at, largest);
      store_places(places + at, place);
    }
}

// The transforms of F(tile, 3): d of side values of an image, y of tile gradients of outputs, m of side sums of
// products, g of three values of a filter. They follow from the points at which polynomials are multiplied.

// From 0, 1, -1, 2, -2 and infinity.
struct Tile4 {
  static constexpr long kTile = 4, kSide = 6, kPlaces = kSide * kSide;

  // B' d
  static void image(const vec (&d)[6], vec (&out)[6]) {
    const vec odd = 2.0f * (d[3] - d[1]), even = d[4] - d[2];
    const vec low = d[4] - 4.0f * d[2], high = d[3] - 4.0f * d[1];
    out[0] = 4.0f * d[0] - 5.0f * d[2] + d[4];
    out[1] = low + high;
    out[2] = low - high;
    out[3] = even + odd;
    out[4] = even - odd;
    out[5] = 4.0f * d[1] - 5.0f * d[3] + d[5];
  }

  // A y
  static void gradient(const vec (&y)[4], vec (&out)[6]) {
    const vec even = y[0] + y[2], odd = y[1] + y[3], far_even = y[0] + 4.0f * y[2], far_odd = 2.0f * y[1] + 8.0f * y[3];
    out[0] = y[0];
    out[1] = even + odd;
    out[2] = even - odd;
    out[3] = far_even + far_odd;
    out[4] = far_even - far_odd;
    out[5] = y[3];
  }

  // A' m
  static void back(const vec (&m)[6], vec (&out)[4]) {
    const vec even = m[1] + m[2], odd = m[1] - m[2], far_even = m[3] + m[4], far_odd = m[3] - m[4];
    out[0] = m[0] + even + far_even;
    out[1] = odd + 2.0f * far_odd;
    out[2] = even + 4.0f * far_even;
    out[3] = odd + 8.0f * far_odd + m[5];
  }

  // G g
  static void filter(const vec (&g)[3], vec (&out)[6]) {
    const vec ends = (g[0] + g[2]) * (-1.0f / 6), middle = g[1] * (1.0f / 6);
    const vec far = g[0] * (1.0f / 24) + g[2] * (1.0f / 6), far_middle = g[1] * (1.0f / 12);
    out[0] = g[0] * 0.25f;
    out[1] = ends - middle;
    out[2] = ends + middle;
    out[3] = far + far_middle;
    out[4] = far - far_middle;
    out[5] = g[2];
  }

  // G' m
  static void filter_gradient(const vec (&m)[6], vec (&out)[3]) {
    const vec even = (m[1] + m[2]) * (-1.0f / 6), odd = (m[2] - m[1]) * (1.0f / 6);
    const vec far_even = m[3] + m[4], far_odd = m[3] - m[4];
    out[0] = m[0] * 0.25f + even + far_even * (1.0f / 24);
    out[1] = odd + far_odd * (1.0f / 12);
    out[2] = even + far_even * (1.0f / 6) + m[5];
  }
};

// From 0, 1, -1, 1/2, -2 and infinity, which err less by a third and multiply more often.
struct CarefulTile4 {
  static constexpr long kTile = 4, kSide = 6, kPlaces = kSide * kSide;

  static void image(const vec (&d)[6], vec (&out)[6]) {
    const vec ends = d[3] - d[1], even = d[4] - d[2];
    out[0] = d[0] + 1.5f * ends - 2.0f * d[2] + d[4];
    out[1] = 0.5f * d[2] - d[1] + 2.5f * d[3] + d[4];
    out[2] = d[1] - 2.5f * d[2] + 0.5f * d[3] + d[4];
    out[3] = even + 2.0f * ends;
    out[4] = even - 0.5f * ends;
    out[5] = d[1] + 1.5f * even - 2.0f * d[3] + d[5];
  }

  static void gradient(const vec (&y)[4], vec (&out)[6]) {
    const vec even = y[0] + y[2], odd = y[1] + y[3];
    out[0] = y[0];
    out[1] = even + odd;
    out[2] = even - odd;
    out[3] = y[0] + 0.5f * y[1] + 0.25f * y[2] + 0.125f * y[3];
    out[4] = y[0] - 2.0f * y[1] + 4.0f * y[2] - 8.0f * y[3];
    out[5] = y[3];
  }

  static void back(const vec (&m)[6], vec (&out)[4]) {
    const vec even = m[1] + m[2], odd = m[1] - m[2];
    out[0] = m[0] + even + m[3] + m[4];
    out[1] = odd + 0.5f * m[3] - 2.0f * m[4];
    out[2] = even + 0.25f * m[3] + 4.0f * m[4];
    out[3] = odd + 0.125f * m[3] - 8.0f * m[4] + m[5];
  }

  static void filter(const vec (&g)[3], vec (&out)[6]) {
    const vec ends = g[0] + g[2];
    out[0] = g[0];
    out[1] = (ends + g[1]) * (1.0f / 3);
    out[2] = (ends - g[1]) * (-1.0f / 3);
    out[3] = (g[0] + 0.5f * g[1] + 0.25f * g[2]) * (-16.0f / 15);
    out[4] = (g[0] - 2.0f * g[1] + 4.0f * g[2]) * (1.0f / 15);
    out[5] = g[2];
  }

  static void filter_gradient(const vec (&m)[6], vec (&out)[3]) {
    const vec one = m[1] * (1.0f / 3), other = m[2] * (1.0f / 3), near = m[3] * (-16.0f / 15), far = m[4] * (1.0f / 15);
    out[0] = m[0] + one - other + near + far;
    out[1] = one + other + 0.5f * near - 2.0f * far;
    out[2] = one - other + 0.25f * near + 4.0f * far + m[5];
  }
};

// From 0, 1, -1, 2 and infinity.
struct Tile3 {
  static constexpr long kTile = 3, kSide = 5, kPlaces = kSide * kSide;

  static void image(const vec (&d)[5], vec (&out)[5]) {
    const vec even = d[3] - d[1];
    out[0] = 2.0f * (d[0] - d[2]) + even;
    out[1] = d[3] - d[2] - 2.0f * d[1];
    out[2] = d[3] - 3.0f * d[2] + 2.0f * d[1];
    out[3] = even;
    out[4] = d[4] - d[2] - 2.0f * even;
  }

  static void gradient(const vec (&y)[3], vec (&out)[5]) {
    const vec ends = y[0] + y[2];
    out[0] = y[0];
    out[1] = ends + y[1];
    out[2] = ends - y[1];
    out[3] = y[0] + 2.0f * y[1] + 4.0f * y[2];
    out[4] = y[2];
  }

  static void back(const vec (&m)[5], vec (&out)[3]) {
    const vec even = m[1] + m[2];
    out[0] = m[0] + even + m[3];
    out[1] = m[1] - m[2] + 2.0f * m[3];
    out[2] = even + 4.0f * m[3] + m[4];
  }

  static void filter(const vec (&g)[3], vec (&out)[5]) {
    const vec ends = g[0] + g[2];
    out[0] = g[0] * 0.5f;
    out[1] = (ends + g[1]) * -0.5f;
    out[2] = (ends - g[1]) * (-1.0f / 6);
    out[3] = (g[0] + 2.0f * g[1] + 4.0f * g[2]) * (1.0f / 6);
    out[4] = g[2];
  }

  static void filter_gradient(const vec (&m)[5], vec (&out)[3]) {
    const vec near = m[1] * -0.5f, sixth = m[2] * (1.0f / 6), far = m[3] * (1.0f / 6);
    out[0] = m[0] * 0.5f + near - sixth + far;
    out[1] = near + sixth + 2.0f * far;
    out[2] = near - sixth + 4.0f * far + m[4];
  }
};

}  // namespace
