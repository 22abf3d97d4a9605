// From the gradient of the logits, tile by tile, to those of hidden and weight: the two GEMMs of every loss.
#pragma once
#include "tiles.h"

namespace gopd {

constexpr int64_t GROUP = 8; // tiles whose gradients meet in one gemm of the gradient of hidden
constexpr int64_t TILE = ROWS * TOKENS;

// grad_hidden [c, h]; that of weight is added to `grad_weight`, or written over it.
//
// fill(tile, block, rows, to, ld, scratch) writes d loss / d logits [rows, TOKENS] of one tile and block, leading
// dimension `ld`; `scratch` holds `scratch_tiles` (at least 1) tiles of floats.
template <typename T, typename Fill>
at::Tensor gradients_through(
    const at::Tensor& hidden, const at::Tensor& weight, const std::optional<at::Tensor>& grad_weight, bool add,
    int64_t scratch_tiles, Fill fill) {
  const int64_t c = hidden.size(0), h = hidden.size(1), v = weight.size(0);
  const int64_t blocks = ceil_div(c, TOKENS), tiles = ceil_div(v, ROWS), slabs = ceil_div(h, COLUMNS);
  const int64_t even = std::is_same_v<T, float> ? c : ceil_div(c, 2) * 2, ld = blocks * TOKENS + 32, ld_group = GROUP * ROWS + 32;
  const bool narrow = grad_weight && grad_weight->scalar_type() != at::kFloat;
  const T *x = hidden.const_data_ptr<T>(), *w = weight.const_data_ptr<T>();
  at::Tensor grad_hidden = at::zeros({c, h}, hidden.options().dtype(at::kFloat));
  Buffer<T> tokens_by_slab(grad_weight ? slabs * COLUMNS * even : 0);
  Buffer<T> grads(blocks * TOKENS * ld_group), rows_by_slab(slabs * COLUMNS * GROUP * ROWS);
  if (grad_weight) pack_slabs(x, c, h, tokens_by_slab.get(), 0, even);

  // One tile: its gradient by rows (returned in `by_rows`) and by tokens (into `grads`), and its weight, packed.
  auto prepare = [&](int64_t tile, int64_t place, float* scratch, T* by_rows, T* pairs) {
    const int64_t first = tile * ROWS, rows = std::min(ROWS, v - first);
    if (rows < ROWS) std::memset(by_rows + rows * ld, 0, (ROWS - rows) * ld * sizeof(T));
    for (int64_t block = 0; block < blocks; block++) {
      const int64_t token = block * TOKENS;
      T* to = by_rows + token;
      fill(tile, block, rows, to, ld, scratch);
      interleave(to, ld, ROWS, TOKENS, pairs, TOKENS);
      constexpr int64_t words = ROWS * sizeof(T) / sizeof(float);
      transpose_words(
          reinterpret_cast<float*>(pairs), TOKENS, reinterpret_cast<float*>(grads.get() + token * ld_group + place * ROWS),
          ld_group * sizeof(T) / sizeof(float), words, TOKENS);
    }
    if (rows < ROWS) // the gemm runs over whole tiles
      for (int64_t slab = 0; slab < slabs; slab++)
        std::memset(
            rows_by_slab.get() + (slab * GROUP * ROWS + place * ROWS) * COLUMNS, 0, ROWS * COLUMNS * sizeof(T));
    pack_slabs(w + first * h, rows, h, rows_by_slab.get(), place * ROWS, GROUP * ROWS);
  };

  auto into_weight = [&](int64_t tile, const T* by_rows, float* scratch) {
    const int64_t first = tile * ROWS, rows = std::min(ROWS, v - first);
    for (int64_t slab = 0; slab < slabs; slab++) {
      const int64_t column = slab * COLUMNS, columns = std::min(COLUMNS, h - column);
      const T* right = tokens_by_slab.get() + slab * even * COLUMNS;
      if (!narrow) {
        float* to = grad_weight->data_ptr<float>() + first * h + column;
        gemm(rows, columns, even, by_rows, ld, right, COLUMNS, to, h, add);
        continue;
      }
      gemm(rows, columns, even, by_rows, ld, right, COLUMNS, scratch, COLUMNS, false);
      BFloat16* to = grad_weight->data_ptr<BFloat16>() + first * h + column;
      for (int64_t n = 0; n < rows; n++)
        for (int64_t i = 0; i < columns; i++)
          to[n * h + i] = scratch[n * COLUMNS + i] + (add ? float(to[n * h + i]) : 0.0f);
    }
  };

  for (int64_t start = 0; start < tiles; start += GROUP) {
    const int64_t count = std::min(GROUP, tiles - start);
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      Buffer<T> by_rows(ROWS * ld), pairs(TILE);
      Buffer<float> scratch(scratch_tiles * TILE);
      std::memset(by_rows.get(), 0, ROWS * ld * sizeof(T));
      for (int64_t place = begin; place < end; place++) {
        prepare(start + place, place, scratch.get(), by_rows.get(), pairs.get());
        if (grad_weight) into_weight(start + place, by_rows.get(), scratch.get());
      }
      at::native::cpublas::brgemm_release(!std::is_same_v<T, float>);
    });
    at::parallel_for(0, blocks, 1, [&](int64_t begin, int64_t end) { // a thread owns its tokens: the sum has one order
      for (int64_t block = begin; block < end; block++) {
        const int64_t token = block * TOKENS, tokens = std::min(TOKENS, c - token);
        for (int64_t slab = 0; slab < slabs; slab++) {
          const int64_t column = slab * COLUMNS;
          gemm(
              tokens, std::min(COLUMNS, h - column), count * ROWS, grads.get() + token * ld_group, ld_group,
              rows_by_slab.get() + slab * GROUP * ROWS * COLUMNS, COLUMNS,
              grad_hidden.data_ptr<float>() + token * h + column, h, true);
        }
      }
      at::native::cpublas::brgemm_release(!std::is_same_v<T, float>);
    });
  }
  return grad_hidden;
}

} // namespace gopd
