// The operators torch.ops.megatron_gopd.
#include "distribution.h"
#include "linear_logprob.h"

#include <torch/library.h>

namespace gopd {

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
  library.def(
      "distribution_statistics(Tensor[] hidden, Tensor[] weight, Tensor targets, float temperature, float lambda, float? "
      "clamp, bool forward, Tensor? log_sums, Tensor(a!)? exp, Tensor(b!)? other, Tensor(c!) peaks) -> Tensor",
      &gopd::any_distribution_statistics);
  library.def(
      "distribution_gradients(Tensor? exp, Tensor? other, Tensor peaks, Tensor[] hidden, Tensor[] weight, Tensor "
      "targets, float temperature, float lambda, float? clamp, bool forward, Tensor? log_sums, Tensor upstream, "
      "Tensor(a!)? grad_weight, bool add) -> Tensor",
      &gopd::any_distribution_gradients);
  library.def("kept_size(int tokens, int rows) -> int", &gopd::kept_size);
  library.def("prefer_huge_pages(Tensor memory) -> ()", &gopd::prefer_huge_pages);
  library.def("takes_bfloat16() -> bool", &gopd::gemm_works<gopd::BFloat16>);
  library.def("takes_float32() -> bool", &gopd::gemm_works<float>);
}
