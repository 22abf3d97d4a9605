// Statistics and gradients of one head over one vocabulary shard and one chunk of tokens; see kernels/backend.py.
#pragma once
#include "products.h"
#include "running.h"

namespace gopd {

template <typename T>
std::tuple<at::Tensor, at::Tensor> statistics(
    const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& targets, double temperature,
    const std::optional<at::Tensor>& kept) {
  const bool keep = kept.has_value();
  const int64_t c = hidden.size(0), h = hidden.size(1), v = weight.size(0);
  const int64_t blocks = ceil_div(c, TOKENS), tiles = ceil_div(v, ROWS);
  const float scale = 1.0 / temperature;
  auto floats = hidden.options().dtype(at::kFloat);
  at::Tensor result = at::empty({4, c}, floats), peaks = at::empty({keep ? tiles : 0, blocks, TOKENS}, floats);
  const T* w = weight.const_data_ptr<T>();
  float* target_logit = result[3].data_ptr<float>();
  std::fill_n(target_logit, c, -INF);
  Buffer<T> packed(blocks * TOKENS * h);
  pack_tokens(hidden.const_data_ptr<T>(), c, h, packed.get());
  Partial<1> partial(tiles, blocks);
  auto merged = [](auto one, auto other) { return Partial<1>::Set{merge(one[0], other[0])}; };

  at::parallel_for(0, partial.parts(), 1, [&](int64_t begin, int64_t end) {
    Buffer<float> logits(ROWS * TOKENS);
    float* z = logits.get();
    for (int64_t tile = begin * PART; tile < std::min(tiles, end * PART); tile++) {
      const int64_t first = tile * ROWS, rows = std::min(ROWS, v - first);
      for (int64_t block = 0; block < blocks; block++) {
        const int64_t token = block * TOKENS, place = (tile * blocks + block) * TOKENS;
        gemm(rows, TOKENS, h, w + first * h, h, packed.get() + token * h, TOKENS, z, TOKENS, false);
        each_target(targets.const_data_ptr<int64_t>(), token, c, first, rows, [&](int64_t i, int64_t row) {
          target_logit[i] = z[row * TOKENS + i - token] * scale;
        });
        for (int lane = 0; lane < TOKENS; lane += 2 * LANES) {
          auto halves = of_tile<T>(z, rows, lane, scale, keep ? kept->data_ptr<T>() + place * ROWS : nullptr);
          for (int half = 0; half < 2; half++) {
            const int64_t at = lane + half * LANES;
            if (keep) halves[half].peak.store(peaks.data_ptr<float>() + place + at);
            partial.add(tile, token + at, {halves[half]}, merged);
          }
        }
      }
    }
    at::native::cpublas::brgemm_release(!std::is_same_v<T, float>);
  });
  partial.finish(c, result.data_ptr<float>(), merged);
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
  const int64_t c = hidden.size(0), h = hidden.size(1), blocks = ceil_div(c, TOKENS);
  const float scale = 1.0 / temperature;
  Buffer<T> packed(kept ? 0 : blocks * TOKENS * h);
  if (!kept) pack_tokens(hidden.const_data_ptr<T>(), c, h, packed.get());

  auto fill = [&](int64_t tile, int64_t block, int64_t rows, T* to, int64_t ld, float* z) {
    const int64_t first = tile * ROWS, token = block * TOKENS, place = (tile * blocks + block) * TOKENS;
    if (kept) {
      const T* e = kept->const_data_ptr<T>() + place * ROWS;
      grad_tile(e, true, peaks.const_data_ptr<float>() + place, scale, rows, all, token, to, ld);
    } else {
      const T* w = weight.const_data_ptr<T>() + first * h;
      gemm(rows, TOKENS, h, w, h, packed.get() + token * h, TOKENS, z, TOKENS, false);
      grad_tile(z, false, nullptr, scale, rows, all, token, to, ld);
    }
    each_target(targets.const_data_ptr<int64_t>(), token, c, first, rows, [&](int64_t i, int64_t row) {
      const float log_p = logprobs.const_data_ptr<float>()[i];
      const float of_entropy = all.on_entropy[i] * std::exp(log_p) * (log_p + all.entropy[i]);
      // not rounded to bf16 first
      to[row * ld + i - token] = T((-all.on_logprob[i] * std::expm1(log_p) - of_entropy) * scale);
    });
  };
  return gradients_through<T>(hidden, weight, grad_weight, add, 1, fill);
}

} // namespace gopd
