// What the kernel is built of: GEMMs on small tiles, their operands packed, and a vector exp.
//
// Layout. A tile of logits is computed transposed, [vocabulary rows, 64 tokens]: the weight is then the left operand as
// it lies in memory, every vector lane is one token, and maxima and sums over the vocabulary need no step across lanes.
#pragma once
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <ATen/native/CPUBlas.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstring>
#include <memory>
#include <tuple>
#include <type_traits>
#include <vector>

namespace gopd {

using BFloat16 = at::BFloat16;
using Vec = at::vec::Vectorized<float>;

constexpr int64_t TOKENS = 64; // a block: lanes of a tile of logits
constexpr int64_t ROWS = 128; // of the vocabulary: the other side of the tile
constexpr int64_t COLUMNS = 64; // of a packed right operand
constexpr int LANES = Vec::size();

inline int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// 64-byte aligned, not initialised.
template <typename T>
class Buffer {
 public:
  explicit Buffer(int64_t count) : bytes_(count * sizeof(T) + 64) {
    memory_.reset(new char[bytes_]);
    auto address = reinterpret_cast<uintptr_t>(memory_.get());
    data_ = reinterpret_cast<T*>((address + 63) & ~uintptr_t(63));
  }
  T* get() const {
    return data_;
  }

 private:
  int64_t bytes_;
  std::unique_ptr<char[]> memory_;
  T* data_;
};

// Fresh memory of hundreds of megabytes costs more in page faults of 4 KiB than in writing it.
inline void prefer_huge_pages(const at::Tensor& memory) {
#ifdef __linux__
  constexpr uintptr_t PAGE = 2 << 20;
  auto begin = reinterpret_cast<uintptr_t>(memory.const_data_ptr());
  auto end = (begin + memory.nbytes()) & ~(PAGE - 1);
  begin = (begin + PAGE - 1) & ~(PAGE - 1);
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

// C [m, n] (+)= A [m, k] B [k, n]; for bf16, B holds pairs of rows interleaved: [k / 2, n, 2].
inline void gemm(
    int64_t m, int64_t n, int64_t k, const BFloat16* a, int64_t lda, const BFloat16* b, int64_t ldb, float* c,
    int64_t ldc, bool add) {
  at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, a, b, c, true);
}

inline void gemm(
    int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c, int64_t ldc,
    bool add) {
  at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, a, b, c, false);
}

// exp(x) for x <= 0 to one unit in the last place; below -87 about 1e-38; NaN stays NaN. Cephes' polynomial.
inline Vec exp_below(Vec x) {
  x = at::vec::maximum(x, Vec(-87.0f));
  Vec n = (x * Vec(1.44269504f)).round();
  Vec r = at::vec::fmadd(n, Vec(-0.693359375f), x);
  r = at::vec::fmadd(n, Vec(2.12194440e-4f), r);
  Vec p = at::vec::fmadd(Vec(1.9875691500e-4f), r, Vec(1.3981999507e-3f));
  p = at::vec::fmadd(p, r, Vec(8.3334519073e-3f));
  p = at::vec::fmadd(p, r, Vec(4.1665795894e-2f));
  p = at::vec::fmadd(p, r, Vec(1.6666665459e-1f));
  p = at::vec::fmadd(p, r, Vec(5.0000001201e-1f));
  p = at::vec::fmadd(p, r * r, r + Vec(1.0f));
  auto exponent = (at::vec::convert_to_int_of_same_size(n) + at::vec::Vectorized<int32_t>(127))
      << at::vec::Vectorized<int32_t>(23);
  return p * at::vec::cast<float, int32_t>(exponent);
}

// 2 LANES floats <-> memory of either type.
inline std::tuple<Vec, Vec> load2(const float* from) {
  return {Vec::loadu(from), Vec::loadu(from + LANES)};
}
inline std::tuple<Vec, Vec> load2(const BFloat16* from) {
  return at::vec::convert_to_float<BFloat16>(at::vec::Vectorized<BFloat16>::loadu(from));
}
inline void store2(float* to, Vec a, Vec b) {
  a.store(to);
  b.store(to + LANES);
}
inline void store2(BFloat16* to, Vec a, Vec b) {
  at::vec::convert_from_float<BFloat16>(a, b).store(to);
}

// Four bytes at a time, one float or a pair of bf16: [m, n] -> [n, m]. Values are only moved.
inline void transpose_words(const float* from, int64_t ld_from, float* to, int64_t ld_to, int64_t m, int64_t n) {
  for (int64_t i = 0; i < m; i += 16)
    for (int64_t j = 0; j < n; j += 16) {
      const float* source = from + i * ld_from + j;
      float* target = to + j * ld_to + i;
      if (i + 16 <= m && j + 16 <= n)
        at::vec::transpose_mxn<float, 16, 16>(source, ld_from, target, ld_to);
      else
        at::vec::transpose_mxn<float>(
            source, ld_from, target, ld_to, int(std::min<int64_t>(16, m - i)), int(std::min<int64_t>(16, n - j)));
    }
}

// Rows k, k + 1 of [k, n] -> [k / 2, n, 2], the right operand of a bf16 gemm; a last odd row is paired with zeros.
inline void interleave(const BFloat16* from, int64_t ld, int64_t k, int64_t n, BFloat16* to, int64_t ld_to) {
  auto* source = reinterpret_cast<const uint16_t*>(from);
  auto* pairs = reinterpret_cast<uint32_t*>(to);
  for (int64_t r = 0; r < k; r += 2) {
    const uint16_t* low = source + r * ld;
    const uint16_t* high = low + ld;
    uint32_t* out = pairs + r / 2 * ld_to;
    if (r + 1 < k)
      for (int64_t i = 0; i < n; i++) out[i] = uint32_t(low[i]) | uint32_t(high[i]) << 16;
    else
      for (int64_t i = 0; i < n; i++) out[i] = low[i];
  }
}
inline void interleave(const float* from, int64_t ld, int64_t k, int64_t n, float* to, int64_t ld_to) {
  for (int64_t r = 0; r < k; r++) std::memcpy(to + r * ld_to, from + r * ld, n * sizeof(float));
}

// [k, h] -> slabs [h / COLUMNS][k / 2][COLUMNS][2] (bf16) or [h / COLUMNS][k][COLUMNS] (float); `k_padded` rows a slab.
template <typename T>
void pack_slabs(const T* from, int64_t k, int64_t h, T* to, int64_t first_row, int64_t k_padded) {
  for (int64_t column = 0; column < h; column += COLUMNS) {
    T* slab = to + (column / COLUMNS * k_padded + first_row) * COLUMNS;
    interleave(from + column, h, k, std::min(COLUMNS, h - column), slab, COLUMNS);
  }
}

// Token rows [count, h] -> blocks of [h, TOKENS] words, the right operand of logits; missing tokens are zeros.
template <typename T>
void pack_tokens(const T* hidden, int64_t count, int64_t h, T* to) {
  int64_t words = h * sizeof(T) / sizeof(float);
  at::parallel_for(0, ceil_div(count, TOKENS), 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; block++) {
      int64_t tokens = std::min(TOKENS, count - block * TOKENS);
      auto* from = reinterpret_cast<const float*>(hidden + block * TOKENS * h);
      auto* out = reinterpret_cast<float*>(to + block * TOKENS * h);
      if (tokens < TOKENS) std::memset(out, 0, TOKENS * h * sizeof(T));
      transpose_words(from, words, out, TOKENS, tokens, words);
    }
  });
}

} // namespace gopd
