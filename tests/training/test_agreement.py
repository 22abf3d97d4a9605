"""A run goes on only with an engine that samples with the student's weights."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from megatron_gopd.config.schema import Rollout
from megatron_gopd.data.trajectory import Trajectory
from megatron_gopd.errors import UserError
from megatron_gopd.training.agreement import START_TOKENS, compare_at_start, refuse_disagreement
from tests.rollout.sample_on_ranks import prompts

OURS = np.array([-1.0, -2.0, -0.5], dtype=np.float32)
DECODER = SimpleNamespace(decode=lambda ids: f"<{ids[0]}>")


def compare(by: list[float], **rollout) -> None:
    """Against an engine whose log-probs are off by `by` nats."""
    tokens, versions = np.array([7, 8, 9], np.int32), np.array([2, 3, 3], np.int32)
    sampled = Trajectory(prompts(1)[0], 0, tokens, OURS + np.array(by, dtype=np.float32), "stop", versions)
    settings = Rollout.model_validate({"engine": "sglang"} | rollout)
    refuse_disagreement([sampled], SimpleNamespace(logprobs=[OURS]), settings, DECODER)


def test_an_engine_with_other_weights_is_refused_with_the_worst_token():
    shown = r"disagree by 0.7 nats a token.* response token 1 \('<8>', id 8\) of prompt 'p0': -0.4000 by the engine"
    with pytest.raises(UserError, match=shown):
        compare([0.2, 1.6, -0.3])


def test_what_precision_does_is_no_reason_to_stop():
    compare([0.05, 0.5, -0.1])


def test_the_ceiling_of_the_mean_is_the_user_s():
    compare([0.2, 1.6, -0.3], start_logprob_abs_diff=0.8)
    with pytest.raises(UserError, match=r"more than rollout.start_logprob_abs_diff \(0.1\)"):
        compare([0.05, 0.5, -0.1], start_logprob_abs_diff=0.1)


@pytest.mark.parametrize(
    "rollout", [{"engine": "transformers"}, {"sglang": {"verify_every": 0}}], ids=["here", "never"]
)
def test_only_servers_that_are_to_be_verified_are(rollout):
    compare([0.2, 1.6, -0.3], **rollout)


@pytest.fixture
def job(make_config, one_rank):
    from megatron_gopd.training.job import build_job

    return build_job(make_config("compared"))


def test_engine_and_trainer_read_one_folder_alike(job):
    compare_at_start(job)


def test_an_engine_that_reads_another_model_is_refused_before_the_first_step(job, chat_models):
    from megatron_gopd.rollout.embedded import load_for_decoding

    job.rollout.model = load_for_decoding(chat_models["other"], "float32")
    shown = r"before the first step engine and trainer disagree by .*start_logprob_abs_diff \(0.25\), and most on token"
    with pytest.raises(UserError, match=shown):
        compare_at_start(job)


def test_a_few_hundred_tokens_are_compared(job, monkeypatch):
    asked = []
    score = job.student.score
    monkeypatch.setattr(job.student, "score", lambda rows, temperature: asked.extend(rows) or score(rows, temperature))
    compare_at_start(job)
    tokens = sum(len(row.response_tokens) for row in asked)
    assert tokens == min(START_TOKENS, sum(len(prompt.student_tokens) - 1 for prompt in job.loader.prompts))
