// Statistics and gradients of the LM head over one vocabulary shard and one chunk of tokens; see kernels/backend.py.
#include "tiles.h"

#include <torch/library.h>

#include <array>

namespace gopd {

constexpr int64_t PART = 16; // tiles whose statistics are summed before they are merged: fixed, whatever the threads
constexpr int64_t GROUP = 8; // tiles whose gradients meet in one gemm of the gradient of hidden
constexpr float INF = std::numeric_limits<float>::infinity();

// Running peak, sum exp(z - peak) and sum exp(z - peak) (z - peak) of LANES tokens.
struct Running {
  Vec peak, total, weighted;
};

Running merge(const Running& one, const Running& other) {
  Vec peak = at::vec::maximum(one.peak, other.peak);
  Vec lower = one.peak - peak, other_lower = other.peak - peak;
  Vec shrink = exp_below(lower), other_shrink = exp_below(other_lower);
  return {
      peak, at::vec::fmadd(one.total, shrink, other.total * other_shrink),
      (one.weighted + one.total * lower) * shrink + (other.weighted + other.total * other_lower) * other_shrink};
}

// Of one tile of logits [rows, TOKENS], 2 LANES tokens from `lane`; keeps exp(z - peak) where asked.
template <typename T>
std::array<Running, 2> of_tile(const float* z, int64_t rows, int lane, float scale, T* kept) {
  static_assert(TOKENS % (2 * LANES) == 0);
  Vec highest[2] = {Vec(-INF), Vec(-INF)}, total[2] = {Vec(0.0f), Vec(0.0f)}, weighted[2] = {Vec(0.0f), Vec(0.0f)};
  for (int64_t n = 0; n < rows; n++)
    for (int half = 0; half < 2; half++)
      highest[half] = at::vec::maximum(highest[half], Vec::loadu(z + n * TOKENS + lane + half * LANES));
  const Vec factor(scale), peak[2] = {highest[0] * factor, highest[1] * factor};
  for (int64_t n = 0; n < rows; n++) {
    Vec e[2];
    for (int half = 0; half < 2; half++) {
      // in this order: a product fused into the difference would leave the peak itself off 0
      const Vec shifted = (Vec::loadu(z + n * TOKENS + lane + half * LANES) - highest[half]) * factor;
      e[half] = exp_below(shifted);
      total[half] = total[half] + e[half];
      weighted[half] = at::vec::fmadd(e[half], shifted, weighted[half]);
    }
    if (kept != nullptr) store2(kept + n * TOKENS + lane, e[0], e[1]);
  }
  return {Running{peak[0], total[0], weighted[0]}, Running{peak[1], total[1], weighted[1]}};
}

template <typename T>
std::tuple<at::Tensor, at::Tensor> statistics(
    const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets, double temperature,
    const std::optional<at::Tensor>& kept) {
  const bool keep = kept.has_value();
  const int64_t c = hidden.size(0), h = hidden.size(1), v = weight.size(0);
  const int64_t blocks = ceil_div(c, TOKENS), tiles = ceil_div(v, ROWS), parts = ceil_div(tiles, PART);
  const float scale = 1.0 / temperature;
  auto floats = hidden.options().dtype(at::kFloat);
  at::Tensor partial = at::empty({parts, 3, blocks * TOKENS}, floats);
  at::Tensor result = at::empty({4, c}, floats);
  at::Tensor peaks = at::empty({keep ? tiles : 0, blocks, TOKENS}, floats);
  const T* w = weight.const_data_ptr<T>();
  const int64_t* target = targets.const_data_ptr<int64_t>();
  float* target_logit = result[3].data_ptr<float>();
  std::fill_n(target_logit, c, -INF);
  Buffer<T> packed(blocks * TOKENS * h);
  pack_tokens(hidden.const_data_ptr<T>(), c, h, packed.get());

  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    Buffer<float> logits(ROWS * TOKENS);
    float* z = logits.get();
    for (int64_t tile = begin * PART; tile < std::min(tiles, end * PART); tile++) {
      const int64_t first = tile * ROWS, rows = std::min(ROWS, v - first);
      float* running = partial.data_ptr<float>() + tile / PART * 3 * blocks * TOKENS;
      for (int64_t block = 0; block < blocks; block++) {
        const int64_t token = block * TOKENS, tokens = std::min(TOKENS, c - token);
        gemm(rows, TOKENS, h, w + first * h, h, packed.get() + token * h, TOKENS, z, TOKENS, false);
        for (int64_t i = 0; i < tokens; i++) {
          const int64_t row = target[token + i] - first;
          if (row >= 0 && row < rows) target_logit[token + i] = z[row * TOKENS + i] * scale;
        }
        T* to = keep ? kept->data_ptr<T>() + (tile * blocks + block) * ROWS * TOKENS : nullptr;
        for (int lane = 0; lane < TOKENS; lane += 2 * LANES) {
          auto halves = of_tile<T>(z, rows, lane, scale, to);
          for (int half = 0; half < 2; half++) {
            const int64_t step = blocks * TOKENS, i = token + lane + half * LANES;
            float* at = running + i;
            Running found = halves[half];
            if (keep) found.peak.store(peaks.data_ptr<float>() + tile * step + i);
            if (tile % PART) found = merge({Vec::loadu(at), Vec::loadu(at + step), Vec::loadu(at + 2 * step)}, found);
            found.peak.store(at);
            found.total.store(at + step);
            found.weighted.store(at + 2 * step);
          }
        }
      }
    }
    at::native::cpublas::brgemm_release(!std::is_same_v<T, float>);
  });

  const int64_t step = blocks * TOKENS;
  for (int64_t token = 0; token < step; token += LANES) {
    auto load = [&](int64_t part) {
      const float* at = partial.const_data_ptr<float>() + part * 3 * step + token;
      return Running{Vec::loadu(at), Vec::loadu(at + step), Vec::loadu(at + 2 * step)};
    };
    Running all = load(0);
    for (int64_t part = 1; part < parts; part++) all = merge(all, load(part));
    const int count = std::clamp<int64_t>(c - token, 0, LANES);
    all.peak.store(result[0].data_ptr<float>() + token, count);
    all.total.store(result[1].data_ptr<float>() + token, count);
    all.weighted.store(result[2].data_ptr<float>() + token, count);
  }
  return {result, peaks};
}

// What the gradient of the logits of a chunk needs of every token; padded with zero coefficients to whole blocks.
struct Tokens {
  Tokens(int64_t blocks) : log_sum(blocks * TOKENS), entropy(log_sum), on_logprob(log_sum), on_entropy(log_sum) {}
  std::vector<float> log_sum, entropy, on_logprob, on_entropy;
  bool uses_entropy = false;
};

// d loss / d logits of one tile and block from p = `factor` e and log p = log(e) + `offset`, or, where nothing was kept,
// from the logits themselves: e = z scale. Writes rows [rows, TOKENS] with leading dimension `ld`.
template <typename T, typename From>
void grad_tile(
    const From* from, bool kept, const float* peaks, float scale, int64_t rows, const Tokens& all, int64_t token, T* to,
    int64_t ld) {
  for (int lane = 0; lane < TOKENS; lane += 2 * LANES) {
    Vec offset[2], factor[2], on_logprob[2], on_entropy[2], entropy[2];
    for (int half = 0; half < 2; half++) {
      const int64_t i = token + lane + half * LANES;
      const Vec log_sum = Vec::loadu(all.log_sum.data() + i);
      offset[half] = kept ? Vec::loadu(peaks + lane + half * LANES) - log_sum : log_sum.neg();
      factor[half] = kept ? exp_below(offset[half]) : Vec(1.0f);
      on_logprob[half] = Vec::loadu(all.on_logprob.data() + i) * Vec(-scale);
      on_entropy[half] = Vec::loadu(all.on_entropy.data() + i) * Vec(-scale);
      entropy[half] = Vec::loadu(all.entropy.data() + i);
      if (kept && !all.uses_entropy) factor[half] = factor[half] * on_logprob[half];
    }
    for (int64_t n = 0; n < rows; n++) {
      auto [low, high] = load2(from + n * TOKENS + lane);
      Vec out[2] = {low, high};
      for (int half = 0; half < 2; half++) {
        Vec p = kept ? out[half] * factor[half] : Vec(), log_p;
        if (kept && !all.uses_entropy) {
          out[half] = p;
          continue;
        }
        if (kept) // an exponential that was rounded to 0 has log p = -inf, but no weight
          log_p = at::vec::maximum(out[half], Vec(1e-38f)).log() + offset[half];
        else {
          log_p = out[half] * Vec(scale) + offset[half];
          p = exp_below(log_p);
        }
        Vec coefficient = on_logprob[half];
        if (all.uses_entropy) coefficient = at::vec::fmadd(on_entropy[half], log_p + entropy[half], coefficient);
        out[half] = p * coefficient;
      }
      store2(to + n * ld + lane, out[0], out[1]);
    }
  }
}

template <typename T>
at::Tensor gradients(
    const std::optional<at::Tensor>& kept, const at::Tensor& peaks, const at::Tensor& hidden, const at::Tensor& weight,
    const at::Tensor& targets, const at::Tensor& logprobs, double temperature, const Tokens& all,
    const std::optional<at::Tensor>& grad_weight, bool add) {
  const int64_t c = hidden.size(0), h = hidden.size(1), v = weight.size(0);
  const int64_t blocks = ceil_div(c, TOKENS), tiles = ceil_div(v, ROWS), slabs = ceil_div(h, COLUMNS);
  const int64_t even = std::is_same_v<T, float> ? c : ceil_div(c, 2) * 2, ld = blocks * TOKENS + 32, ld_group = GROUP * ROWS + 32;
  const bool recompute = !kept, narrow = grad_weight && grad_weight->scalar_type() != at::kFloat;
  const float scale = 1.0 / temperature;
  const T *x = hidden.const_data_ptr<T>(), *w = weight.const_data_ptr<T>();
  at::Tensor grad_hidden = at::zeros({c, h}, hidden.options().dtype(at::kFloat));
  Buffer<T> tokens_by_slab(grad_weight ? slabs * COLUMNS * even : 0), packed(recompute ? blocks * TOKENS * h : 0);
  Buffer<T> grads(blocks * TOKENS * ld_group), rows_by_slab(slabs * COLUMNS * GROUP * ROWS);
  if (grad_weight) pack_slabs(x, c, h, tokens_by_slab.get(), 0, even);
  if (recompute) pack_tokens(x, c, h, packed.get());

  // One tile: its gradient by rows (returned in `by_rows`) and by tokens (into `grads`), and its weight, packed.
  auto prepare = [&](int64_t tile, int64_t place, float* z, T* by_rows, T* pairs) {
    const int64_t first = tile * ROWS, rows = std::min(ROWS, v - first);
    if (rows < ROWS) std::memset(by_rows + rows * ld, 0, (ROWS - rows) * ld * sizeof(T));
    for (int64_t block = 0; block < blocks; block++) {
      const int64_t token = block * TOKENS;
      T* to = by_rows + token;
      if (recompute) {
        gemm(rows, TOKENS, h, w + first * h, h, packed.get() + token * h, TOKENS, z, TOKENS, false);
        grad_tile(z, false, nullptr, scale, rows, all, token, to, ld);
      } else {
        const int64_t at = tile * blocks + block;
        grad_tile(
            kept->const_data_ptr<T>() + at * ROWS * TOKENS, true, peaks.const_data_ptr<float>() + at * TOKENS, scale, rows,
            all, token, to, ld);
      }
      for (int64_t i = token; i < std::min(c, token + TOKENS); i++) {
        const int64_t row = targets.const_data_ptr<int64_t>()[i] - first;
        if (row < 0 || row >= rows) continue;
        const float log_p = logprobs.const_data_ptr<float>()[i];
        const float of_entropy = all.on_entropy[i] * std::exp(log_p) * (log_p + all.entropy[i]);
        by_rows[row * ld + i] = T((-all.on_logprob[i] * std::expm1(log_p) - of_entropy) * scale); // not rounded to bf16 first
      }
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
      Buffer<T> by_rows(ROWS * ld), pairs(ROWS * TOKENS);
      Buffer<float> scratch(ROWS * TOKENS);
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

// Elements that `statistics` writes into `kept`.
int64_t kept_size(int64_t tokens, int64_t rows) {
  return ceil_div(rows, ROWS) * ROWS * ceil_div(tokens, TOKENS) * TOKENS;
}

std::tuple<at::Tensor, at::Tensor> any_statistics(
    const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets, double temperature,
    const std::optional<at::Tensor>& kept) {
  auto run = hidden.scalar_type() == at::kFloat ? statistics<float> : statistics<BFloat16>;
  return run(hidden, weight, targets, temperature, kept);
}

at::Tensor any_gradients(
    const std::optional<at::Tensor>& kept, const at::Tensor& peaks, const at::Tensor& hidden, const at::Tensor& weight,
    const at::Tensor& targets, const at::Tensor& logprobs, double temperature, const at::Tensor& log_sum,
    const at::Tensor& entropy, const at::Tensor& grad_logprobs, const std::optional<at::Tensor>& grad_entropy,
    const std::optional<at::Tensor>& grad_weight, bool add) {
  const int64_t c = hidden.size(0);
  Tokens all(ceil_div(c, TOKENS));
  std::copy_n(log_sum.const_data_ptr<float>(), c, all.log_sum.begin());
  std::copy_n(entropy.const_data_ptr<float>(), c, all.entropy.begin());
  std::copy_n(grad_logprobs.const_data_ptr<float>(), c, all.on_logprob.begin());
  if (grad_entropy) std::copy_n(grad_entropy->const_data_ptr<float>(), c, all.on_entropy.begin());
  all.uses_entropy = grad_entropy.has_value();
  auto run = hidden.scalar_type() == at::kFloat ? gradients<float> : gradients<BFloat16>;
  return run(kept, peaks, hidden, weight, targets, logprobs, temperature, all, grad_weight, add);
}

// Whether this CPU's brgemm takes the type; it raises where it does not.
template <typename T>
bool gemm_works() {
  try {
    T a[2] = {}, b[32] = {};
    float c[16];
    gemm(1, 16, 2, a, 2, b, 16, c, 16, false);
    at::native::cpublas::brgemm_release(std::is_same_v<T, BFloat16>);
    return true;
  } catch (const c10::Error&) {
    return false;
  }
}

} // namespace gopd

TORCH_LIBRARY(megatron_gopd, library) {
  library.def(
      "statistics(Tensor hidden, Tensor weight, Tensor targets, float temperature, Tensor(a!)? kept) -> (Tensor, Tensor)",
      &gopd::any_statistics);
  library.def(
      "gradients(Tensor? kept, Tensor peaks, Tensor hidden, Tensor weight, Tensor targets, Tensor logprobs, float "
      "temperature, Tensor log_sum, Tensor entropy, Tensor grad_logprobs, Tensor? grad_entropy, Tensor(a!)? "
      "grad_weight, bool add) -> Tensor",
      &gopd::any_gradients);
  library.def("kept_size(int tokens, int rows) -> int", &gopd::kept_size);
  library.def("prefer_huge_pages(Tensor memory) -> ()", &gopd::prefer_huge_pages);
  library.def("takes_bfloat16() -> bool", &gopd::gemm_works<gopd::BFloat16>);
  library.def("takes_float32() -> bool", &gopd::gemm_works<float>);
}
