// Statistics and gradients of the student's head beside those of its target; see kernels/backend.py.
#pragma once
#include "products.h"
#include "running.h"

namespace gopd {

// How D comes from the logits of teacher and reference, and the divergence from it.
struct Mixture {
  float lambda, scale; // scale: 1 / temperature
  std::optional<float> clamp;
  bool forward;
  std::vector<float> log_sums[2]; // of teacher and reference, with a clamp; padded to whole blocks

  // D of LANES tokens from `token`, from the products of the hidden states and one row of either weight.
  Vec of(Vec teacher, Vec reference, int64_t token) const {
    if (!clamp) return at::vec::fmadd(teacher, Vec(lambda * scale), reference * Vec((1 - lambda) * scale));
    const Vec star = teacher * Vec(scale), other = reference * Vec(scale);
    const Vec gain = (star - Vec::loadu(log_sums[0].data() + token)) - (other - Vec::loadu(log_sums[1].data() + token));
    return star + at::vec::clamp(gain * Vec(lambda - 1), Vec(-*clamp), Vec(*clamp));
  }
};

// Both sides of one tile, LANES tokens.
struct Sides {
  Running z, mixture;
  Vec gap; // sum exp(x1 - peak1) ((x1 - peak1) - (x2 - peak2)): see DistributionStatistics
  Vec shift; // of what was kept: reverse: z - D less this; forward: exp(D - this) - exp(z - peak)
};

// Of one tile of products [rows, TOKENS], 2 LANES tokens from `lane` of the block at `token`; overwrites all of them.
// Keeps E = exp(z - peak) and, less `shift`, z - D (reverse) or exp(D) - exp(z) (forward), where asked: in bf16 the
// difference of two numbers that were rounded one by one would be all rounding. `exp` and `other` may be z and teacher.
template <typename T>
std::array<Sides, 2> sides_of_tile(
    float* z, float* teacher, const float* reference, int64_t rows, int lane, int64_t token, const Mixture& how, T* exp,
    T* other) {
  Vec highest_z[2] = {Vec(-INF), Vec(-INF)}, highest_d[2] = {Vec(-INF), Vec(-INF)};
  Vec d_of_highest_z[2] = {Vec(0.0f), Vec(0.0f)};
  for (int64_t n = 0; n < rows; n++)
    for (int half = 0; half < 2; half++) {
      const int64_t at = n * TOKENS + lane + half * LANES;
      Vec d = Vec::loadu(teacher + at);
      if (reference != nullptr) {
        d = how.of(d, Vec::loadu(reference + at), token + lane + half * LANES);
        d.store(teacher + at);
      }
      const Vec logit = Vec::loadu(z + at);
      d_of_highest_z[half] = Vec::blendv(d_of_highest_z[half], d, logit > highest_z[half]);
      highest_z[half] = at::vec::maximum(highest_z[half], logit);
      highest_d[half] = at::vec::maximum(highest_d[half], d);
    }
  const Vec zero(0.0f), of_z(how.scale), of_d(reference == nullptr ? how.scale : 1.0f);
  std::array<Sides, 2> found;
  for (int half = 0; half < 2; half++)
    found[half] = {
        {highest_z[half] * of_z, zero, zero}, {highest_d[half] * of_d, zero, zero}, zero,
        highest_z[half] * of_z - d_of_highest_z[half] * of_d};
  const Vec at_highest[2] = {
      (highest_d[0] - d_of_highest_z[0]) * of_d, (highest_d[1] - d_of_highest_z[1]) * of_d}; // of gap
  for (int64_t n = 0; n < rows; n++) {
    Vec e_z[2], e_d[2], gap[2];
    float *at_z = z + n * TOKENS + lane, *at_d = teacher + n * TOKENS + lane;
    for (int half = 0; half < 2; half++) {
      const Vec below_z = (Vec::loadu(at_z + half * LANES) - highest_z[half]) * of_z;
      const Vec below_d = (Vec::loadu(at_d + half * LANES) - highest_d[half]) * of_d;
      e_z[half] = exp_below(below_z);
      e_d[half] = exp_below(below_d);
      gap[half] = below_z - below_d;
      Sides& sides = found[half];
      sides.z.total = sides.z.total + e_z[half];
      sides.z.weighted = at::vec::fmadd(e_z[half], below_z, sides.z.weighted);
      sides.mixture.total = sides.mixture.total + e_d[half];
      sides.mixture.weighted = at::vec::fmadd(e_d[half], below_d, sides.mixture.weighted);
      sides.gap = at::vec::fmadd(how.forward ? e_d[half].neg() : e_z[half], gap[half], sides.gap);
    }
    if (exp == nullptr) continue;
    if (how.forward) { // both sums must be known first
      store2(at_z, e_z[0], e_z[1]);
      store2(at_d, e_d[0], e_d[1]);
    } else {
      store2(exp + n * TOKENS + lane, e_z[0], e_z[1]);
      // of bf16's digits most go to the tokens of most weight: at the highest logit it is 0
      store2(other + n * TOKENS + lane, gap[0] - at_highest[0], gap[1] - at_highest[1]);
    }
  }
  if (exp == nullptr || !how.forward) return found;
  Vec ratio[2];
  for (int half = 0; half < 2; half++) {
    ratio[half] = found[half].z.total / found[half].mixture.total;
    found[half].shift = found[half].mixture.peak - ratio[half].log();
  }
  for (int64_t n = 0; n < rows; n++) {
    auto [low_z, high_z] = load2(z + n * TOKENS + lane);
    auto [low_d, high_d] = load2(teacher + n * TOKENS + lane);
    store2(exp + n * TOKENS + lane, low_z, high_z);
    store2(other + n * TOKENS + lane, low_d * ratio[0] - low_z, high_d * ratio[1] - high_z);
  }
  return found;
}

// The heads' operands: student, teacher and, if there is one, reference.
template <typename T>
struct Heads {
  Heads(at::TensorList hidden, at::TensorList weight) : weights(weight), blocks(ceil_div(hidden[0].size(0), TOKENS)) {
    for (const at::Tensor& states : hidden) {
      packed.emplace_back(blocks * TOKENS * states.size(1));
      pack_tokens(states.const_data_ptr<T>(), states.size(0), states.size(1), packed.back().get());
    }
  }
  // The products of one tile and block, one tile of floats a head.
  void products(int64_t first, int64_t rows, int64_t token, float* to) const {
    for (size_t n = 0; n < packed.size(); n++) {
      const int64_t h = weights[n].size(1);
      gemm(
          rows, TOKENS, h, weights[n].const_data_ptr<T>() + first * h, h, packed[n].get() + token * h, TOKENS,
          to + n * TILE, TOKENS, false);
    }
  }
  at::TensorList weights;
  int64_t blocks;
  std::vector<Buffer<T>> packed;
};

// Peak, total and weighted of student, teacher, reference and D [3 (HEADS + 1), c], then target logits [HEADS, c];
// into peaks [2, tiles, blocks, TOKENS] the student's peak and `shift` of every tile, if exp and other are kept.
template <typename T, int HEADS>
at::Tensor distribution_statistics(
    at::TensorList hidden, at::TensorList weight, const at::Tensor& targets, const Mixture& how,
    const std::optional<at::Tensor>& exp, const std::optional<at::Tensor>& other, const at::Tensor& peaks) {
  const int64_t c = hidden[0].size(0), v = weight[0].size(0), tiles = ceil_div(v, ROWS);
  const bool keep = exp.has_value();
  Heads<T> heads(hidden, weight);
  const int64_t blocks = heads.blocks;
  at::Tensor result = at::empty({3 * (HEADS + 1) + HEADS, c}, hidden[0].options().dtype(at::kFloat));
  float* target_logit = result.data_ptr<float>() + 3 * (HEADS + 1) * c;
  std::fill_n(target_logit, HEADS * c, -INF);
  using Rows = Partial<HEADS + 1>;
  Rows partial(tiles, blocks);
  auto merged = [&](const typename Rows::Set& one, const typename Rows::Set& two) {
    typename Rows::Set all;
    for (int n = 0; n <= HEADS; n++) all[n] = merge(one[n], two[n]);
    const int leading = how.forward ? HEADS : 0, trailing = HEADS - leading;
    auto gap = [&](const typename Rows::Set& part) { // of D: relative to both peaks
      const Vec lower = part[leading].peak - all[leading].peak, below = part[trailing].peak - all[trailing].peak;
      return (part[HEADS].weighted + part[leading].total * (lower - below)) * exp_below(lower);
    };
    all[HEADS].weighted = gap(one) + gap(two);
    return all;
  };

  at::parallel_for(0, partial.parts(), 1, [&](int64_t begin, int64_t end) {
    Buffer<float> logits(HEADS * TILE);
    float *z = logits.get(), *teacher = z + TILE, *reference = HEADS == 3 ? z + 2 * TILE : nullptr;
    for (int64_t tile = begin * PART; tile < std::min(tiles, end * PART); tile++) {
      const int64_t first = tile * ROWS, rows = std::min(ROWS, v - first);
      for (int64_t block = 0; block < blocks; block++) {
        const int64_t token = block * TOKENS, place = (tile * blocks + block) * TOKENS;
        heads.products(first, rows, token, z);
        each_target(targets.const_data_ptr<int64_t>(), token, c, first, rows, [&](int64_t i, int64_t row) {
          for (int n = 0; n < HEADS; n++) target_logit[n * c + i] = z[n * TILE + row * TOKENS + i - token] * how.scale;
        });
        T* to = keep ? exp->data_ptr<T>() + place * ROWS : nullptr;
        for (int lane = 0; lane < TOKENS; lane += 2 * LANES) {
          std::array<Running, 2> of_teacher, of_reference;
          if constexpr (HEADS == 3) {
            of_teacher = of_tile<T>(teacher, rows, lane, how.scale, nullptr);
            of_reference = of_tile<T>(reference, rows, lane, how.scale, nullptr);
          }
          auto halves = sides_of_tile<T>(
              z, teacher, reference, rows, lane, token, how, to, keep ? other->data_ptr<T>() + place * ROWS : nullptr);
          for (int half = 0; half < 2; half++) {
            const Sides& sides = halves[half];
            const int64_t at = lane + half * LANES;
            if (keep) {
              sides.z.peak.store(peaks.data_ptr<float>() + place + at);
              sides.shift.store(peaks.data_ptr<float>() + tiles * blocks * TOKENS + place + at);
            }
            typename Rows::Set found;
            found[0] = sides.z;
            found[1] = sides.mixture; // without a reference D is the teacher's
            if constexpr (HEADS == 3) {
              found[1] = of_teacher[half];
              found[2] = of_reference[half];
            }
            found[HEADS] = {sides.mixture.peak, sides.mixture.total, sides.gap};
            partial.add(tile, token + at, found, merged);
          }
        }
      }
    }
    at::native::cpublas::brgemm_release(!std::is_same_v<T, float>);
  });
  partial.finish(c, result.data_ptr<float>(), merged);
  return result;
}

// DistributionUpstream, padded with zero slopes to whole blocks.
struct Asked {
  std::vector<float> log_sum, mixture_log_sum, gap, own_log_sum, logprobs, on_divergence, on_logprob;
};

// d loss / d logits of one tile and block from what was kept, or from `products` that are computed again.
template <typename T, typename From>
void grad_of_kept(
    const From* exp, const From* other, const float* peaks, const float* shifts, int64_t rows, const Mixture& how,
    const Asked& all, const int64_t* target, int64_t count, int64_t first, int64_t token, T* to, int64_t ld) {
  float on_exp[TOKENS], on_other[TOKENS]; // reverse: g = exp (on_exp + on_other other); forward: the sum of both
  auto column = [&](const std::vector<float>& of, int64_t i) { return Vec::loadu(of.data() + token + i); };
  for (int lane = 0; lane < TOKENS; lane += 2 * LANES) {
    Vec factor[2], slope[2];
    for (int half = 0; half < 2; half++) {
      const int64_t i = lane + half * LANES;
      const Vec peak = Vec::loadu(peaks + i), shift = Vec::loadu(shifts + i), scale(how.scale);
      const Vec on_divergence = column(all.on_divergence, i) * scale;
      const Vec of_z = exp_below(peak - column(all.log_sum, i)) * on_divergence;
      if (how.forward) {
        slope[half] = (exp_below(shift - column(all.mixture_log_sum, i)) * on_divergence).neg();
        factor[half] = of_z + slope[half];
      } else {
        slope[half] = of_z;
        factor[half] = of_z * (shift - column(all.gap, i));
      }
      factor[half].store(on_exp + i);
      slope[half].store(on_other + i);
      factor[half] = factor[half] - exp_below(peak - column(all.own_log_sum, i)) * column(all.on_logprob, i) * scale;
    }
    for (int64_t n = 0; n < rows; n++) {
      auto [low, high] = load2(exp + n * TOKENS + lane);
      auto [low_other, high_other] = load2(other + n * TOKENS + lane);
      if (how.forward)
        store2(
            to + n * ld + lane, at::vec::fmadd(low, factor[0], low_other * slope[0]),
            at::vec::fmadd(high, factor[1], high_other * slope[1]));
      else
        store2(
            to + n * ld + lane, low * at::vec::fmadd(low_other, slope[0], factor[0]),
            high * at::vec::fmadd(high_other, slope[1], factor[1]));
    }
  }
  each_target(target, token, count, first, rows, [&](int64_t i, int64_t row) {
    const int64_t at = i - token, from = row * TOKENS + at;
    const float e = exp[from], o = other[from];
    const float of_divergence = e * on_exp[at] + (how.forward ? o : e * o) * on_other[at];
    // 1 - p from the log-prob, not from a p that was rounded to bf16
    to[row * ld + at] = T(of_divergence - all.on_logprob[i] * how.scale * std::expm1(all.logprobs[i]));
  });
}

template <typename T, int HEADS>
at::Tensor distribution_gradients(
    const std::optional<at::Tensor>& exp, const std::optional<at::Tensor>& other, const at::Tensor& peaks,
    at::TensorList hidden, at::TensorList weight, const at::Tensor& targets, const Mixture& how, const Asked& all,
    const std::optional<at::Tensor>& grad_weight, bool add) {
  const int64_t c = hidden[0].size(0), blocks = ceil_div(c, TOKENS);
  const int64_t* target = targets.const_data_ptr<int64_t>();
  std::optional<Heads<T>> heads;
  if (!exp) heads.emplace(hidden, weight);
  auto fill = [&](int64_t tile, int64_t block, int64_t rows, T* to, int64_t ld, float* z) {
    const int64_t first = tile * ROWS, token = block * TOKENS, place = (tile * blocks + block) * TOKENS;
    if (exp) {
      const float *at = peaks.const_data_ptr<float>() + place, *shifts = at + peaks.numel() / 2;
      const T *e = exp->const_data_ptr<T>() + place * ROWS, *o = other->const_data_ptr<T>() + place * ROWS;
      grad_of_kept(e, o, at, shifts, rows, how, all, target, c, first, token, to, ld);
      return;
    }
    heads->products(first, rows, token, z);
    float peak[TOKENS], shift[TOKENS];
    for (int lane = 0; lane < TOKENS; lane += 2 * LANES) {
      float* reference = HEADS == 3 ? z + 2 * TILE : nullptr;
      auto halves = sides_of_tile<float>(z, z + TILE, reference, rows, lane, token, how, z, z + TILE);
      for (int half = 0; half < 2; half++) {
        halves[half].z.peak.store(peak + lane + half * LANES);
        halves[half].shift.store(shift + lane + half * LANES);
      }
    }
    grad_of_kept(z, z + TILE, peak, shift, rows, how, all, target, c, first, token, to, ld);
  };
  return gradients_through<T>(hidden[0], weight[0], grad_weight, add, HEADS, fill);
}

// ---- by dtype and number of heads
inline std::vector<float> padded(const float* from, int64_t c) {
  std::vector<float> column(ceil_div(c, TOKENS) * TOKENS);
  if (from != nullptr) std::copy_n(from, c, column.begin());
  return column;
}

inline Mixture mixture(
    double lambda, double temperature, std::optional<double> clamp, bool forward, const std::optional<at::Tensor>& log_sums) {
  Mixture how{float(lambda), float(1.0 / temperature), std::nullopt, forward, {}};
  if (!log_sums) return how;
  how.clamp = float(*clamp);
  for (int n = 0; n < 2; n++) how.log_sums[n] = padded((*log_sums)[n].const_data_ptr<float>(), log_sums->size(1));
  return how;
}

inline at::Tensor any_distribution_statistics(
    at::TensorList hidden, at::TensorList weight, const at::Tensor& targets, double temperature, double lambda,
    std::optional<double> clamp, bool forward, const std::optional<at::Tensor>& log_sums,
    const std::optional<at::Tensor>& exp, const std::optional<at::Tensor>& other, const at::Tensor& peaks) {
  const bool wide = hidden[0].scalar_type() == at::kFloat, two = hidden.size() == 2;
  auto run = two ? wide ? distribution_statistics<float, 2> : distribution_statistics<BFloat16, 2>
                 : wide ? distribution_statistics<float, 3> : distribution_statistics<BFloat16, 3>;
  return run(hidden, weight, targets, mixture(lambda, temperature, clamp, forward, log_sums), exp, other, peaks);
}

// upstream: DistributionUpstream's columns [7, c].
inline at::Tensor any_distribution_gradients(
    const std::optional<at::Tensor>& exp, const std::optional<at::Tensor>& other, const at::Tensor& peaks,
    at::TensorList hidden, at::TensorList weight, const at::Tensor& targets, double temperature, double lambda,
    std::optional<double> clamp, bool forward, const std::optional<at::Tensor>& log_sums, const at::Tensor& upstream,
    const std::optional<at::Tensor>& grad_weight, bool add) {
  const int64_t c = hidden[0].size(0);
  auto column = [&](int64_t n) { return padded(upstream.const_data_ptr<float>() + n * c, c); };
  const Asked all{column(0), column(1), column(2), column(3), column(4), column(5), column(6)};
  const bool wide = hidden[0].scalar_type() == at::kFloat, two = hidden.size() == 2;
  auto run = two ? wide ? distribution_gradients<float, 2> : distribution_gradients<BFloat16, 2>
                 : wide ? distribution_gradients<float, 3> : distribution_gradients<BFloat16, 3>;
  const Mixture how = mixture(lambda, temperature, clamp, forward, log_sums);
  return run(exp, other, peaks, hidden, weight, targets, how, all, grad_weight, add);
}

} // namespace gopd
