"""What a run keeps of its trajectories."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from megatron_gopd.runs.trajectories import steps_kept
from tests.chat_models import tokenizer
from tests.training.runs_on_ranks import TEACHERS, kept

LOGPROBS = [f"{who}_logprobs" for who in ("student", "teacher", "reference", "behaviour")]


@pytest.fixture(scope="module")
def run(make_config, distill) -> Path:
    """More responses than are kept."""
    config = make_config(logging={"trajectories": {"per_teacher": 2}})
    distill(config)
    return Path(config.run.folder, "first")


@pytest.fixture(scope="module")
def rows(run) -> list[dict]:
    return kept(run)


def test_a_random_and_the_best_of_each_teacher_at_each_step(rows):
    told = [(row["step"], row["teacher"], row["kept_as"]) for row in rows]
    assert told == [(step, name, why) for step in range(1, 6) for name in TEACHERS for why in ("random", "best")]


def test_the_parts_of_the_advantage_add_up(rows):
    for row in rows:
        student, teacher, reference = (np.array(row[name]) for name in LOGPROBS[:3])
        np.testing.assert_allclose(row["advantage_of_teacher"], teacher - student, rtol=0, atol=1e-5)
        np.testing.assert_allclose(row["advantage_beyond_teacher"], 0.25 * (teacher - reference), rtol=0, atol=1e-5)
        parts = np.add(row["advantage_of_teacher"], row["advantage_beyond_teacher"])
        np.testing.assert_allclose(row["advantage"], parts, rtol=0, atol=1e-6)


def test_every_column_has_a_value_for_every_token(rows):
    for row in rows:
        for name in (*LOGPROBS, "entropy", "advantage", "rollout_correction", "pieces"):
            assert len(row[name]) == len(row["response_tokens"]) > 0


def test_pieces_are_the_response(rows):
    for row in rows:
        assert row["response"] == tokenizer().decode(row["response_tokens"])
        texts = ("".join(row["pieces"]), row["response"])
        assert len({re.sub("\ufffd+", "\ufffd", text) for text in texts}) == 1  # a random model says half characters


def test_versions_of_weights(rows):
    """On policy: sampled with the weights that are trained."""
    for row in rows:
        assert row["trained_from_version"] == row["step"] - 1
        assert row["sampled_with_versions"] == [row["step"] - 1] * len(row["response_tokens"])


def test_samples_are_random_ones_of_them(run, rows):
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    of_random = [(row["step"], row["id"], row["response"]) for row in rows if row["kept_as"] == "random"]
    assert [sample["step"] for sample in samples] == [1, 2, 3, 4, 5]
    assert all((sample["step"], sample["id"], sample["response"]) in of_random for sample in samples)
    assert {sample["teacher"] for sample in samples} == set(TEACHERS)


def test_every_other_step(make_config, distill):
    config = make_config("seldom", logging={"trajectories": {"every": 2}})
    distill(config)
    assert list(steps_kept(Path(config.run.folder, "seldom", "trajectories"))) == [1, 3, 5]


def test_none_are_kept_where_that_is_turned_off(make_config, distill):
    config = make_config("off", logging={"trajectories": None})
    distill(config)
    assert not {"trajectories", "samples.jsonl"} & {path.name for path in Path(config.run.folder, "off").iterdir()}


def test_half_a_surrogate_pair_is_written_as_what_it_is():
    from megatron_gopd.training.kept import writable

    assert writable("a\ud800b🙂") == "a\\ud800b🙂"
