// The fp32 kernels beside direct sums in fp64, without Python: for processors that only an emulator has here.
//
// Ends with 1, and says where, if one of them is off by more than 1e-5 of the norm.

#include <cmath>
#include <cstdio>
#include <cstdint>
#include <vector>

extern "C" {
void transform_filters(const float*, float*, float*, long, long, long);
void convolve(const float*, const uint8_t*, const float*, const float*, float*, uint8_t*, long, long, long, long, long);
void filter_gradient_work(long, long, int64_t*);
void convolve_filter_gradient(const float*, const float*, const uint8_t*, float*, float*, float*, long, long, long, long,
                              long);
void norm_sums(const float*, long, long, double*, double*);
void norm_activate(const float*, const float*, const float*, const float*, float*, long, long, float, float);
void norm_activate_gradient(const float*, const float*, const float*, const float*, const float*, const float*,
                            const float*, float*, float*, long, long, float, float);
}

namespace {

using Floats = std::vector<float>;
using Doubles = std::vector<double>;

Floats drawn(size_t count) {
  static uint32_t state = 1;
  Floats values(count);
  for (float& value : values) {
    state = state * 1664525 + 1013904223;
    value = static_cast<float>(state >> 8) / (1 << 23) - 1;
  }
  return values;
}

bool equal(const char* name, const Floats& found, const Doubles& expected) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < found.size(); i++) {
    difference += (found[i] - expected[i]) * (found[i] - expected[i]);
    norm += expected[i] * expected[i];
  }
  const double error = std::sqrt(difference / norm);
  std::printf("%s: %.1e\n", name, error);
  return error < 1e-5;
}

// Calls use(place in x, place in the filters, place in y) for each product of a 3x3 convolution.
template <class Use>
void each_product(long N, long H, long W, long inputs, long outputs, Use use) {
  for (long n = 0; n < N; n++)
    for (long h = 0; h < H; h++)
      for (long w = 0; w < W; w++)
        for (long k = 0; k < 9; k++) {
          const long i = h + k / 3 - 1, j = w + k % 3 - 1;
          if (i < 0 || i >= H || j < 0 || j >= W) continue;
          for (long o = 0; o < outputs; o++)
            for (long c = 0; c < inputs; c++)
              use(((n * H + i) * W + j) * inputs + c, (o * 9 + k) * inputs + c, ((n * H + h) * W + w) * outputs + o);
        }
}

bool convolution(long N, long H, long W, long inputs, long outputs) {
  const size_t pixels = N * H * W, size = 9 * inputs * outputs;
  const Floats x = drawn(pixels * inputs), filters = drawn(size), g = drawn(pixels * outputs);
  Floats transformed(36 * inputs * outputs), y(g.size()), of_x(x.size()), of_filters(size);
  Floats sums(36 * inputs * outputs);
  float scale;
  transform_filters(filters.data(), transformed.data(), &scale, inputs, outputs, 0);
  convolve(x.data(), nullptr, transformed.data(), &scale, y.data(), nullptr, N, H, W, inputs, outputs);
  transform_filters(filters.data(), transformed.data(), &scale, inputs, outputs, 1);
  convolve(g.data(), nullptr, transformed.data(), &scale, of_x.data(), nullptr, N, H, W, outputs, inputs);
  int64_t needed;
  filter_gradient_work(inputs, outputs, &needed);
  Floats work(needed);
  convolve_filter_gradient(x.data(), g.data(), nullptr, sums.data(), work.data(), of_filters.data(), N, H, W, inputs,
                           outputs);
  Doubles exact_y(y.size()), exact_x(x.size()), exact_filters(size);
  each_product(N, H, W, inputs, outputs, [&](long a, long b, long c) {
    exact_y[c] += static_cast<double>(x[a]) * filters[b];
    exact_x[a] += static_cast<double>(g[c]) * filters[b];
    exact_filters[b] += static_cast<double>(g[c]) * x[a];
  });
  bool good = equal("convolution", y, exact_y);
  good &= equal("gradient of the images", of_x, exact_x);
  return equal("gradient of the filters", of_filters, exact_filters) && good;
}

// Pooled outputs are the largest of each 2x2 window, and a gradient goes to their places.
bool pooled(long N, long H, long W, long inputs, long outputs) {
  const size_t pixels = N * H * W, pools = pixels / 4;
  const Floats x = drawn(pixels * inputs), filters = drawn(9 * inputs * outputs);
  Floats transformed(36 * inputs * outputs), y(pools * outputs);
  std::vector<uint8_t> places(y.size());
  float scale;
  transform_filters(filters.data(), transformed.data(), &scale, inputs, outputs, 0);
  convolve(x.data(), nullptr, transformed.data(), &scale, y.data(), places.data(), N, H, W, inputs, outputs);
  Doubles whole(pixels * outputs), largest(y.size(), -1e9);
  each_product(N, H, W, inputs, outputs,
               [&](long a, long b, long c) { whole[c] += static_cast<double>(x[a]) * filters[b]; });
  for (long n = 0; n < N; n++)
    for (long h = 0; h < H; h++)
      for (long w = 0; w < W; w++)
        for (long o = 0; o < outputs; o++) {
          double& to = largest[((n * (H / 2) + h / 2) * (W / 2) + w / 2) * outputs + o];
          to = std::fmax(to, whole[((n * H + h) * W + w) * outputs + o]);
        }
  return equal("pooled convolution", y, largest);
}

bool norm(long rows, long channels) {
  const Floats z = drawn(rows * channels), branch = drawn(z.size()), scale = drawn(channels), shift = drawn(channels);
  const Floats slope = drawn(channels), offset = drawn(channels), g = drawn(z.size());
  Floats y(z.size()), of_z(z.size()), of_branch(z.size());
  Doubles sum(channels), squares(channels), exact(channels), exact_y(z.size()), exact_z(z.size()), exact_branch(z.size());
  norm_sums(z.data(), rows, channels, sum.data(), squares.data());
  norm_activate(z.data(), branch.data(), scale.data(), shift.data(), y.data(), rows, channels, 0, 0);
  norm_activate_gradient(g.data(), z.data(), branch.data(), scale.data(), shift.data(), slope.data(), offset.data(),
                         of_z.data(), of_branch.data(), rows, channels, 0, 0);
  for (long i = 0; i < rows * channels; i++) {
    const long c = i % channels;
    const double x = static_cast<double>(z[i]) * scale[c] + shift[c] + branch[i];
    exact[c] += static_cast<double>(z[i]) * z[i];
    exact_y[i] = std::fmax(x, 0);
    exact_branch[i] = x > 0 ? g[i] : 0;
    exact_z[i] = scale[c] * exact_branch[i] + static_cast<double>(slope[c]) * z[i] + offset[c];
  }
  bool good = equal("sums of squares", Floats(squares.begin(), squares.end()), exact);
  good &= equal("norm, branch and ReLU", y, exact_y);
  good &= equal("gradient of the norm", of_z, exact_z);
  return equal("gradient of the branch", of_branch, exact_branch) && good;
}

}  // namespace

int main() {
  bool good = convolution(3, 7, 6, 16, 32);
  good &= convolution(1, 1, 5, 48, 16);
  good &= convolution(2, 12, 9, 32, 80);
  good &= pooled(2, 6, 8, 16, 48);
  good &= norm(201, 48);
  return !good;
}
