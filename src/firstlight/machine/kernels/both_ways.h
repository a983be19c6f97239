// A linear transform of one direction, done in both directions of a square.

#pragma once

namespace {

// From From x From values that `read` gives by their place to To x To that `write` takes, or to `rows` rows of these
// from row `first` on, counted from there. `transform` goes from an array of From vectors to one of To.
template <long From, long To, long first = 0, long rows = To, class Read, class Write, class Transform>
inline void both_ways(Read read, Write write, Transform transform) {
  using Vector = decltype(read(0));
  Vector half[rows * From];
#pragma GCC unroll 6
  for (long j = 0; j < From; j++) {
    Vector in[From], out[To];
#pragma GCC unroll 6
    for (long i = 0; i < From; i++) in[i] = read(i * From + j);
    transform(in, out);
#pragma GCC unroll 6
    for (long i = 0; i < rows; i++) half[i * From + j] = out[first + i];
  }
#pragma GCC unroll 6
  for (long i = 0; i < rows; i++) {
    Vector in[From], out[To];
#pragma GCC unroll 6
    for (long j = 0; j < From; j++) in[j] = half[i * From + j];
    transform(in, out);
#pragma GCC unroll 6
    for (long j = 0; j < To; j++) write(i * To + j, out[j]);
  }
}

}  // namespace
