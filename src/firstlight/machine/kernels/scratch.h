// Memory to work in.

#pragma once

#include <cstddef>
#include <cstdlib>

namespace {

// Grows and never shrinks; one for each thread and use.
template <class Value>
class Scratch {
 public:
  Value* of(size_t count) {
    if (count > size_) {
      std::free(data_);
      data_ = static_cast<Value*>(std::aligned_alloc(64, (count * sizeof(Value) + 63) / 64 * 64));
      if (!data_) std::abort();
      size_ = count;
    }
    return data_;
  }
  ~Scratch() { std::free(data_); }

 private:
  Value* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace
