"""An objective of the user's own, in whole runs: on ranks, in layouts, with either LM head, resumed, and broken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_gopd.config import Config, own_code
from megatron_gopd.config.objective import own_section
from megatron_gopd.errors import UserError
from tests.ranks import on_ranks
from tests.training.runs_on_ranks import distill_all, interrupted, metrics_of, own_reward, two_teachers

OWN = """\
from megatron_gopd.config import Objective
from megatron_gopd.objective import by_autograd


class Keys(Objective):
    NEEDS = ("teacher_logprobs", "reference_logprobs", "outcome")
    bonus: float = 0.01


def build(keys: Keys):
    @by_autograd
    def loss(logprobs, entropy, rows):
        gap = logprobs - 0.5 * (rows.teacher_logprobs + rows.reference_logprobs)
        each = 0.1 * gap.square() - keys.bonus * entropy - rows.outcome * logprobs
        if logprobs.min() < -2:
            SURE
        return (rows.weights * each).sum(), {"squared_gap": gap.square()}

    return loss
"""
CASES = {"tp-sp": {"tp": 2, "sequence_parallel": True}, "pp": {"pp": 2}}


@pytest.fixture(scope="module")
def tree(chat_models, questions):
    """tree(folder, name, layout, **sections): a run of the objective in folder/mine.py."""

    def tree(folder: Path, name: str = "own", layout: dict | None = None, sure: str = "pass", **sections) -> dict:
        (folder / "mine.py").write_text(OWN.replace("SURE", sure))
        algorithm = {"type": f"{folder / 'mine.py'}:build", "bonus": 0.02}
        more = {"algorithm": algorithm, "rewards": own_reward(folder), "checkpoint": {"every": 2, "keep": 9}}
        made = two_teachers(chat_models, questions, folder, name, layout, **more | sections)
        del made["teachers"]["strong"]["reference"]
        made["rollout"] |= {"samples_per_prompt": 2}
        made["run"]["steps"] = 4
        return made

    return tree


@pytest.fixture(scope="module")
def alone(tree, distill, tmp_path_factory) -> dict:
    whole = tree(tmp_path_factory.mktemp("own"))
    distill(Config.model_validate(whole))
    return whole


def rows(tree: dict) -> list[dict]:
    return metrics_of(Path(tree["run"]["folder"], tree["run"]["name"], "metrics.jsonl"))


def test_its_metrics_are_in_every_row(alone):
    assert all(row["squared_gap"] > 0 for row in rows(alone))
    assert {"reverse_kl/strong", "reward/short", "staleness_max"} <= rows(alone)[0].keys()
    assert not {"advantage_mean", "rollout_correction"} & rows(alone)[0].keys()


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_follow_one(two_ranks, alone, case):
    for row, expected in zip(rows(two_ranks[case]), rows(alone), strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.fixture(scope="module")
def two_ranks(tree, tmp_path_factory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("two-ranks")
    trees = {name: tree(folder, name, layout) for name, layout in CASES.items()}
    on_ranks(2, distill_all, trees=list(trees.values()))
    return trees


def test_with_logits_in_memory_it_is_the_same(tree, alone, distill, tmp_path):
    naive = tree(tmp_path, training={"logprob": "naive", "max_tokens_per_micro_batch": 64})
    distill(Config.model_validate(naive))
    for row, expected in zip(rows(naive), rows(alone), strict=True):
        assert row == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_a_resumed_run_goes_on_bit_for_bit_and_tells_of_another_file(alone, distill, tmp_path, capsys):
    again = interrupted(alone, after=2, folder=tmp_path)
    distill(Config.model_validate(again))
    assert rows(again) == rows(alone)
    assert "is not as it was" not in capsys.readouterr().out

    file = Path(alone["run"]["folder"], "mine.py")
    then = file.read_text()
    edited = interrupted(alone, after=2, folder=tmp_path / "edited")
    file.write_text(then + "\n# another word\n")
    forget()
    distill(Config.model_validate(edited))
    said = capsys.readouterr().out
    assert f"warning: algorithm.type: {file} is not as it was at step 2 (SHA-256 " in said
    assert "rewards: " not in said
    logs = tmp_path / "edited" / "own" / "logs"
    kept = [(logs / f"attempt-{number}" / "algorithm.type.py").read_text() for number in (1, 2)]
    assert kept == [then, then + "\n# another word\n"]


@pytest.mark.parametrize(
    ("sure", "expected"),
    [
        ("logprobs = logprobs * float('nan'); each = each * logprobs", "mine.py:11: loss returned loss with nan in it"),
        ("raise ZeroDivisionError('here')", "mine.py:16: ZeroDivisionError: here (in: if len("),
    ],
)
def test_what_fails_in_a_step_leaves_the_run_as_it_was(tree, distill, tmp_path, sure, expected):
    """Fine on what is made up, broken on the batch: nothing of the step is written."""
    broken = tree(tmp_path, sure=f"if len(logprobs) not in (32, 64): {sure}")
    with pytest.raises(UserError) as caught:
        distill(Config.model_validate(broken))
    assert expected in str(caught.value)
    folder = tmp_path / "own"
    assert (folder / "metrics.jsonl").read_text() == ""
    assert not (folder / "samples.jsonl").exists()
    assert not (folder / "model").exists()
    assert list((folder / "checkpoints").glob("*")) == []


def forget() -> None:
    """As a process that starts anew would."""
    for cached in (own_code._module, own_code._digest, own_section):
        cached.cache_clear()


def test_the_manifest_of_a_checkpoint_names_the_files(alone):
    manifest = json.loads(Path(alone["run"]["folder"], "own/checkpoints/step-00000002/manifest.json").read_text())
    assert manifest["about"]["own_code"].keys() == {"algorithm.type", "rewards"}
