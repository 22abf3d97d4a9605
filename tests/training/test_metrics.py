"""One row of metrics from made-up batches."""

from __future__ import annotations

import numpy as np
import pytest

from megatron_gopd.data.trajectory import Prompt, RoutedExperts, Trajectory

SECONDS = {"step": 4.0, "rollout": 1.5}


def trajectory(
    teacher: str, behaviour, scores, reason: str = "stop", reward: float | None = None, versions=(0,)
) -> Trajectory:
    prompt = Prompt("p", [], None, teacher, [1], [1], [1])
    arrays = [np.array(values, dtype=np.float32) for values in (behaviour, scores)]
    told = {"teacher_logprobs": arrays[1], "reward": reward, "weight_versions": np.array(versions, np.int32)}
    return Trajectory(prompt, 0, np.ones(len(behaviour), np.int32), arrays[0], reason, **told)


def update_of(logprobs: list[list[float]]):
    from megatron_gopd.policies.update import Update

    ours, entropy, advantage = ([np.array(row, dtype=np.float32) + shift for row in logprobs] for shift in (0, 3, 1))
    return Update(0.5, 1e-5, 0.25, ours, entropy, {"advantage": advantage})


@pytest.fixture
def row() -> dict[str, float]:
    from megatron_gopd.training.metrics import step_metrics

    batch = [
        trajectory("a", [-1.0, -2.0, -3.0], [-2.0, -2.0, -2.0], "length", reward=1.0, versions=(0, 0, 1)),
        trajectory("a", [-1.5], [-4.0], reward=0.0, versions=(2,)),
        trajectory("b", [-2.0], [-1.0]),
    ]
    return step_metrics(3, batch, update_of([[-1.0, -2.0, -3.0], [-1.0], [-2.25]]), SECONDS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("loss", 0.25),
        ("grad_norm", 0.5),
        ("lr", 1e-5),
        ("reverse_kl", (1 + 0 - 1 + 3 - 1.25) / 5),  # a mean over tokens, not over trajectories
        ("reverse_kl/a", (1 + 0 - 1 + 3) / 4),
        ("reverse_kl/b", -1.25),
        ("advantage_mean", -9.25 / 5 + 1),
        ("entropy", -9.25 / 5 + 3),
        ("response_tokens_mean", 5 / 3),
        ("truncated_fraction", 1 / 3),
        ("train_rollout_logprob_abs_diff", (0.5 + 0.25) / 5),
        ("train_rollout_logprob_abs_diff_max", 0.5),
        ("staleness_mean", (2 + 2 + 1 + 0 + 2) / 5),  # in step 3
        ("staleness_max", 2),
        ("reward/a", 0.5),
        ("timing/step_s", 4.0),
        ("timing/rollout_s", 1.5),
        ("tokens_per_s", 5 / 4),
    ],
)
def test_value(row, name, value):
    assert row[name] == pytest.approx(value, abs=1e-7)


def test_positions_whose_experts_the_engine_told_are_counted():
    """Of prompts of one token and responses of two, two positions each; one is not known."""
    from megatron_gopd.training.metrics import step_metrics

    batch = [trajectory("a", [-1.0, -2.0], [-1.0, -1.0]) for _ in range(2)]
    for each, told in zip(batch, (2, 1), strict=True):
        each.routed_experts = RoutedExperts.of(np.zeros((told, 3, 2), np.uint8))
    assert step_metrics(1, batch, update_of([[-1.0, -2.0]] * 2), SECONDS)["replayed_fraction"] == 0.75


def test_ungraded_trajectories_have_no_reward(row):
    assert "reward/b" not in row


def test_values_are_plain_numbers(row):
    assert all(type(value) is float for value in row.values())


def test_a_step_of_which_no_prefix_was_looked_at_whole_tells_nothing_of_lambda():
    from megatron_gopd.training.metrics import step_metrics

    update = update_of([[-1.0, -2.0]])
    update.metrics |= dict.fromkeys(("lambda_limit", "disagreement"), [np.full(2, np.nan, dtype=np.float32)])
    row = step_metrics(1, [trajectory("a", [-1.0, -2.0], [-1.0, -1.0])], update, SECONDS)
    assert not {"lambda_limit/p01", "lambda_limit/unbounded", "teacher_reference_tv"} & set(row)
