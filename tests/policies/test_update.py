"""One student on one rank: what an update depends on, what it keeps, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from megatron_gopd.errors import UserError
from megatron_gopd.objective import gopd_loss
from megatron_gopd.policies.student import Student
from tests.policies.steps_on_ranks import CAP, LAMBDA, LENGTHS, batch, settings, take_steps, weights_of

LINEAR = {"lr": 1e-2, "eps": 1.0, "clip_grad": 0.0}
LOSS = gopd_loss(LAMBDA, CAP)


@pytest.fixture
def folder(models, alone):
    return models["qwen3-tied"]


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean"])
@pytest.mark.parametrize("budget", [70, 1])
def test_the_step_does_not_depend_on_the_micro_batches(folder, aggregation, budget):
    keys = LINEAR | {"aggregation": aggregation}
    (whole,), weights = take_steps(folder, 1, **keys)
    (cut,), cut_weights = take_steps(folder, 1, budget=budget, **keys)
    assert cut.loss == pytest.approx(whole.loss, abs=1e-6)
    assert cut.grad_norm == pytest.approx(whole.grad_norm, rel=1e-5)
    for name, value in weights.items():
        np.testing.assert_allclose(cut_weights[name], value, rtol=0, atol=1e-6, err_msg=name)


def test_token_mean_is_another_step_than_sequence_mean(folder):
    by_sequence, by_token = (
        take_steps(folder, 1, **LINEAR, aggregation=aggregation)[0][0]
        for aggregation in ("sequence_mean", "token_mean")
    )
    assert abs(by_sequence.loss - by_token.loss) > 1e-3


def test_token_columns_are_of_the_weights_before_the_step(folder):
    student = Student(settings(folder, **LINEAR))
    before, after = (student.update(batch(), LOSS).logprobs[0] for _ in range(2))
    again = Student(settings(folder, **LINEAR)).update(batch(), LOSS).logprobs[0]
    np.testing.assert_array_equal(before, again)
    assert abs(after - before).max() > 1e-3


def test_the_rate_follows_the_schedule(folder):
    updates, _ = take_steps(folder, 3, lr=1e-3, schedule="linear", warmup_steps=2)
    assert [update.lr for update in updates] == pytest.approx([5e-4, 1e-3, 1e-3])


def test_sgd_moves_by_lr_times_gradient(folder):
    (update,), weights = take_steps(folder, 1, type="sgd", lr=1e-3, clip_grad=0.0)
    start = weights_of(Student(settings(folder)))
    moved = np.sqrt(sum(((weights[name] - start[name]).astype(float) ** 2).sum() for name in start))
    assert moved == pytest.approx(1e-3 * update.grad_norm, rel=1e-3)


# ---------------------------------------------------------------- bfloat16
def main_weights(student: Student) -> list[torch.Tensor]:
    return [param.detach().clone() for group in student._optimizer.param_groups for param in group["params"]]


def largest_gap(ones, others) -> float:
    return max(float(abs(one - other).max()) for one, other in zip(ones, others, strict=True))


@pytest.fixture
def bf16_student(folder):
    return Student(settings(folder, dtype="bfloat16", lr=1e-6))


def test_bf16_main_weights_are_float32(bf16_student):
    assert {tensor.dtype for tensor in main_weights(bf16_student)} == {torch.float32}


def test_bf16_main_weights_gather_what_bf16_would_lose(bf16_student):
    start, norm, travelled = main_weights(bf16_student), weights_of(bf16_student)["model.norm.weight"], []
    for _ in range(3):
        bf16_student.update(batch(), LOSS)
        travelled.append(largest_gap(main_weights(bf16_student), start))
    assert travelled == pytest.approx([1e-6, 2e-6, 3e-6], rel=0.2)
    np.testing.assert_array_equal(weights_of(bf16_student)["model.norm.weight"], norm)


def test_bf16_weights_follow_once_the_main_weights_have_moved_enough(folder):
    """A step of 5e-4 is far below half a bf16 digit of a norm near 1 (2e-3 to 4e-3); nine of them are not."""
    start, once, often = (
        take_steps(folder, steps, dtype="bfloat16", lr=5e-4)[1]["model.norm.weight"] for steps in (0, 1, 9)
    )
    large = start > 1
    assert (once != start)[large].mean() < (often != start)[large].mean()
    assert (often != start)[large].any()


def test_the_bf16_log_probs_are_near_those_of_float32(folder):
    wide, narrow = (take_steps(folder, 1, dtype=dtype)[0][0].logprobs for dtype in ("float32", "bfloat16"))
    assert 0 < largest_gap(wide, narrow) < 0.2


# ---------------------------------------------------------------- refusals
def test_a_student_of_nan_is_refused_by_name(folder):
    student = Student(settings(folder))
    with torch.no_grad():
        student.model.module.decoder.final_layernorm.weight.fill_(torch.nan)
    with pytest.raises(UserError, match=r"log-prob of response token 0 of prompt 'p0' \(train\.jsonl:1\) is nan"):
        student.update(batch(), LOSS)


def test_a_gradient_of_nan_leaves_the_weights_as_they_were(folder):
    student = Student(settings(folder))
    before, spoilt = weights_of(student), batch()
    spoilt[1].teacher_logprobs[0] = np.nan
    with pytest.raises(UserError, match="step 1: the gradient norm is not finite"):
        student.update(spoilt, LOSS)
    for name, value in weights_of(student).items():
        np.testing.assert_array_equal(value, before[name], err_msg=name)


def test_every_row_is_reported_at_its_own_length(folder):
    (update,), _ = take_steps(folder, 1, budget=50)
    assert [len(values) for values in update.metrics["advantage"]] == [response for _, response in LENGTHS]
