"""The lights: when they turn, and that each says why."""

from __future__ import annotations

import os

import numpy as np
import pytest

from megatron_gopd.view.health import Light, lights, phases
from megatron_gopd.view.run import Run
from tests.view.written import write_run

NOISE = np.random.default_rng(0).normal(0, 0.002, 1000)


def light(tmp_path, name: str, clipped=None, **written) -> Light:
    found = lights(Run.read(write_run(tmp_path / "a", **written)), clipped)
    return next(each for each in found if each.name == name)


def line(start: float, end: float, steps: int = 40):
    """A metric that goes from one value to the other, with noise."""
    return lambda step: start + (end - start) * (step - 1) / (steps - 1) + NOISE[step]


def bent(step: int) -> float:
    return abs(step - 15) / 20 + 0.1 + NOISE[step]


@pytest.mark.parametrize(
    ("metric", "name", "curve", "state", "says"),
    [
        ("reverse_kl", "reverse KL", line(0.8, 0.2), "good", "fell: 0.7"),
        ("reverse_kl", "reverse KL", line(0.2, 0.8), "bad", "rose"),
        ("reverse_kl", "reverse KL", line(0.5, 0.5), "watch", "did not fall"),
        ("reverse_kl", "reverse KL", lambda step: 0.5 + 100 * NOISE[step], "watch", "did not fall"),
        ("reverse_kl", "reverse KL", bent, "bad", "rose"),
        ("reverse_kl", "reverse KL", lambda step: 2 - bent(41 - step), "bad", "rose"),
        ("reverse_kl", "reverse KL", lambda step: bent(41 - step), "watch", "has risen since"),
        ("target_kl", "KL to target", line(0.8, 0.2), "good", "fell"),
        ("reward", "reward", line(0.1, 0.7), "good", "rose"),
        ("reward", "reward", line(0.7, 0.1), "bad", "fell"),
        ("response_tokens_mean", "length", line(50, 60), "good", "50"),
        ("response_tokens_mean", "length", line(50, 90), "watch", "tokens a response"),
        ("response_tokens_mean", "length", line(50, 300), "bad", "tokens a response"),
        ("response_tokens_mean", "length", line(50, 10), "watch", "tokens a response"),
        ("truncated_fraction", "truncation", line(0.0, 0.01), "good", "cut off"),
        ("truncated_fraction", "truncation", line(0.0, 0.1), "watch", "→ 9"),
        ("truncated_fraction", "truncation", line(0.0, 0.6), "bad", "%"),
        ("entropy", "entropy", line(0.5, 0.3), "good", "nats a token"),
        ("entropy", "entropy", line(0.5, 0.1), "watch", "nats a token"),
        ("entropy", "entropy", lambda step: 0.5 * 0.8**step, "bad", "nats a token"),
        ("entropy", "entropy", line(0.5, 4.0), "bad", "nats a token"),
        ("train_rollout_logprob_abs_diff", "engine gap", line(0.01, 0.02), "good", "trainer and engine"),
        ("train_rollout_logprob_abs_diff", "engine gap", line(0.01, 0.08), "watch", "trainer and engine"),
        ("train_rollout_logprob_abs_diff", "engine gap", line(0.01, 0.3), "bad", "trainer and engine"),
        ("clip_fraction", "clipped", line(0.01, 0.02), "good", "of the tokens"),
        ("clip_fraction", "clipped", line(0.01, 0.7), "bad", "of the tokens"),
    ],
)
def test_by_its_ends(tmp_path, metric, name, curve, state, says):
    found = light(tmp_path, name, **{metric: curve})
    assert (found.state, found.metric) == (state, metric)
    assert says in found.reason


def test_a_teacher_whose_kl_rises_while_the_mean_falls(tmp_path):
    curves = {"reverse_kl": line(0.8, 0.2), "reverse_kl__math": line(0.9, 0.1), "reverse_kl__code": line(0.1, 0.4)}
    found = light(tmp_path, "reverse KL", **curves)
    assert (found.state, found.metric) == ("watch", "reverse_kl/code")
    assert "but code's rose" in found.reason


@pytest.mark.parametrize(("share", "state"), [(0.5, "good"), (0.1, "watch"), (0.01, "bad")])
def test_a_teacher_that_is_hardly_heard(tmp_path, share, state):
    found = light(tmp_path, "teachers", teacher_tokens__math=1 - share, teacher_tokens__code=share)
    assert found.state == state
    assert ("code is starved" in found.reason) == (state != "good")


def test_an_evaluation_before_the_first_step_is_no_step_without_teachers(tmp_path):
    path = write_run(tmp_path / "a", steps=2, teacher_tokens__math=0.25, teacher_tokens__code=0.75)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 0, "eval/sums": 0.5}\n')
    assert "math 25%, code 75%" in next(each for each in lights(Run.read(path)) if each.name == "teachers").reason


def test_a_teacher_that_is_never_heard(tmp_path):
    teachers = {"teachers": {"math": {}, "code": {}}}
    found = light(tmp_path, "teachers", config=teachers, teacher_tokens__math=1.0)
    assert found.state == "bad"
    assert "code is starved" in found.reason


@pytest.mark.parametrize(("clipped", "state"), [(None, "unknown"), (1, "good"), (30, "watch"), (200, "bad")])
def test_corrections_at_their_cap(tmp_path, clipped, state):
    assert light(tmp_path, "corrections", None if clipped is None else (clipped, 1000)).state == state


def test_time_by_phase(tmp_path):
    found = light(tmp_path, "time", timing__step_s=4.0, timing__rollout_s=2.0, timing__train_s=1.8)
    assert (found.state, found.reason) == ("good", "4 s a step: rollout 50%, train 45%, other 5%")


def test_waiting_is_told_apart_from_the_phase_that_it_is_part_of(tmp_path):
    seconds = {"step": 4.0, "rollout": 2.0, "wait_for_rollout": 2.0, "score": 2.0, "wait_for_score": 0.4}
    found = light(tmp_path, "time", **{f"timing__{name}_s": value for name, value in seconds.items()})
    assert found.reason == "4 s a step: waiting for responses 50%, score 40%, waiting for scores 10%"


def test_a_checkpoint_is_beside_the_time_of_its_step(tmp_path):
    found = light(tmp_path, "time", timing__step_s=4.0, timing__rollout_s=4.0, timing__checkpoint_s=4.0)
    assert "8 s a step: rollout 50%, checkpoint 50%" in found.reason


def test_time_that_no_phase_accounts_for(tmp_path):
    assert light(tmp_path, "time", timing__step_s=4.0, timing__rollout_s=2.0).state == "watch"


def test_steps_that_grow_longer(tmp_path):
    step = line(2, 8)
    found = light(tmp_path, "time", timing__step_s=step, timing__rollout_s=step)
    assert found.state == "watch"
    assert "grow longer" in found.reason


def test_phases_and_the_rest_are_the_step(tmp_path):
    run = Run.read(write_run(tmp_path / "a", timing__step_s=4.0, timing__rollout_s=2.0, timing__train_s=1.5))
    assert sum(phases(run).values()) == pytest.approx(4.0)


def test_a_finished_run(tmp_path):
    assert light(tmp_path, "progress").state == "good"


@pytest.mark.parametrize(
    ("age", "log", "state", "says"),
    [
        (0, "", "good", "under way: 40 of 90 steps"),
        (7200, "", "bad", "no step came lately"),
        (7200, "x: this rank ends: RuntimeError: boom\n", "bad", "RuntimeError: boom"),
        (7200, "x: this rank ends: StoppedError: told to stop\n", "watch", "can go on"),
        (0, "x: this rank ends: StoppedError: told to stop\n", "watch", "can go on"),
    ],
)
def test_an_unfinished_run(tmp_path, age, log, state, says):
    path = write_run(tmp_path / "a", asked=90)
    (path / "logs" / "latest").mkdir(parents=True)
    (path / "logs" / "latest" / "rank-0.log").write_text(log)
    then = (path / "metrics.jsonl").stat().st_mtime - age
    os.utime(path / "metrics.jsonl", (then, then))
    found = next(each for each in lights(Run.read(path)) if each.name == "progress")
    assert found.state == state
    assert says in found.reason


@pytest.mark.parametrize("steps", [1, 3])
def test_few_steps_tell_nothing(tmp_path, steps):
    found = light(tmp_path, "reverse KL", steps=steps, reverse_kl=line(0.8, 0.2))
    assert (found.state, found.reason) == ("unknown", f"{steps} step{'s' * (steps > 1)}: too few to tell")


def test_a_run_without_metrics_has_lights(tmp_path):
    path = write_run(tmp_path / "a", asked=9)
    (path / "metrics.jsonl").unlink()
    assert {each.state for each in lights(Run.read(path))} <= {"unknown", "bad"}
