// Statistics of logits on the way: of a tile, merged over tiles, in an order that no number of threads changes.
#pragma once
#include "tiles.h"

#include <array>

namespace gopd {

constexpr int64_t PART = 16; // tiles whose statistics are summed before they are merged
constexpr float INF = std::numeric_limits<float>::infinity();

// Peak, sum exp(z - peak) and sum exp(z - peak) (z - peak) of LANES tokens.
struct Running {
  Vec peak, total, weighted;
};

inline Running merge(const Running& one, const Running& other) {
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

// Of N logits of every token, over parts of PART tiles and then over all.
template <int N>
class Partial {
 public:
  using Set = std::array<Running, N>;

  Partial(int64_t tiles, int64_t blocks)
      : step_(blocks * TOKENS), parts_(ceil_div(tiles, PART)), memory_(parts_ * 3 * N * step_) {}

  int64_t parts() const {
    return parts_;
  }

  // What was found in one tile, LANES tokens from `token`; a part's tiles come in order.
  template <typename Merge>
  void add(int64_t tile, int64_t token, Set found, Merge merged) {
    if (tile % PART) found = merged(load(tile / PART, token), found);
    float* to = at(tile / PART, token);
    for (int n = 0; n < N; n++, to += 3 * step_) {
      found[n].peak.store(to);
      found[n].total.store(to + step_);
      found[n].weighted.store(to + 2 * step_);
    }
  }

  // Of the first `count` tokens, into [3, N, count]: peak, total, weighted.
  template <typename Merge>
  void finish(int64_t count, float* result, Merge merged) const {
    for (int64_t token = 0; token < count; token += LANES) {
      Set all = load(0, token);
      for (int64_t part = 1; part < parts_; part++) all = merged(all, load(part, token));
      const int lanes = std::min<int64_t>(count - token, LANES);
      for (int n = 0; n < N; n++) {
        all[n].peak.store(result + n * count + token, lanes);
        all[n].total.store(result + (N + n) * count + token, lanes);
        all[n].weighted.store(result + (2 * N + n) * count + token, lanes);
      }
    }
  }

 private:
  float* at(int64_t part, int64_t token) const {
    return memory_.get() + part * 3 * N * step_ + token;
  }
  Set load(int64_t part, int64_t token) const {
    Set found;
    const float* from = at(part, token);
    for (int n = 0; n < N; n++, from += 3 * step_)
      found[n] = {Vec::loadu(from), Vec::loadu(from + step_), Vec::loadu(from + 2 * step_)};
    return found;
  }

  int64_t step_, parts_;
  Buffer<float> memory_;
};

// Which of a tile's logits is the target's: calls found(token, row) for the tokens whose target lies in it.
template <typename Found>
void each_target(const int64_t* target, int64_t token, int64_t count, int64_t first, int64_t rows, Found found) {
  for (int64_t i = token; i < std::min(count, token + TOKENS); i++) {
    const int64_t row = target[i] - first;
    if (row >= 0 && row < rows) found(i, row);
  }
}

} // namespace gopd
