"""An interrupted run goes on as if nothing had happened."""

from __future__ import annotations

import functools
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from megatron_gopd.config import Config
from megatron_gopd.errors import UserError
from megatron_gopd.runs import read_manifest, write_manifest
from megatron_gopd.runs.trajectories import steps_kept
from tests.ranks import on_ranks
from tests.training.runs_on_ranks import distill_and_resume, interrupted, metrics_of, two_teachers

EVERY = {"checkpoint": {"every": 2, "keep": 9}}
# the layout of the whole run, of the part after the interruption
LAYOUTS = {
    "dp": ({}, {}),
    "tp-sp": ({"tp": 2, "sequence_parallel": True}, {"tp": 2, "sequence_parallel": True}),
    "not-on-rank-0": ({"ranks": [1, 1]}, {"ranks": [1, 1]}),
    "tp-to-pp": ({"tp": 2}, {"pp": 2}),
    "pp-to-dp": ({"pp": 2}, {}),
    "dp-to-cp": ({}, {"cp": 2}),
    "one-rank-to-tp": ({"ranks": [0, 0]}, {"tp": 2}),
}
SAME = [name for name, (before, after) in LAYOUTS.items() if before == after]


@pytest.fixture(scope="module")
def two_ranks(chat_models, questions, tmp_path_factory) -> Path:
    """FOLDER/whole/CASE and FOLDER/CASE/CASE, which was interrupted."""
    folder = tmp_path_factory.mktemp("resumed")
    cases = {
        name: (two_teachers(chat_models, questions, folder / "whole", name, before, **EVERY), {"layout": after})
        for name, (before, after) in LAYOUTS.items()
    }
    on_ranks(2, distill_and_resume, timeout=600, cases=cases, folder=folder)
    return folder


def assert_same(run: Path, other: Path) -> None:
    """All metrics, and every bit of the final weights."""
    assert metrics_of(run / "metrics.jsonl") == metrics_of(other / "metrics.jsonl")
    weights, others = ((each / "model" / "model.safetensors").read_bytes() for each in (run, other))
    assert weights == others


@pytest.mark.parametrize("case", SAME)
def test_in_the_same_layout_bit_for_bit(two_ranks, case):
    assert_same(two_ranks / case / case, two_ranks / "whole" / case)


@pytest.mark.parametrize("case", LAYOUTS)
def test_in_any_layout_to_1e_5(two_ranks, case):
    rows, expected = (metrics_of(two_ranks / run / case / "metrics.jsonl") for run in (case, "whole"))
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    for row, other in zip(rows, expected, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)


@pytest.mark.parametrize(
    "sections",
    [
        {"student": {"dtype": "bfloat16"}},
        {"student": {"dtype": "bfloat16", "offload": True, "recompute": "full"}},
        {"optimizer": {"type": "sgd", "lr": 1e-2}},
        {"optimizer": {"lr": 1e-3, "schedule": "cosine", "warmup_steps": 3}},
    ],
    ids=["bf16", "offload", "sgd", "schedule"],
)
def test_alone_bit_for_bit(make_config, distill, tmp_path, request, sections):
    name = request.node.callspec.id
    tree = make_config(name, **EVERY).model_dump(mode="json", by_alias=True)
    tree = {key: value | sections.get(key, {}) if isinstance(value, dict) else value for key, value in tree.items()}
    distill(Config.model_validate(tree))
    again = interrupted(tree, after=2, folder=tmp_path)
    job = distill(Config.model_validate(again))
    assert_same(tmp_path / name, Path(tree["run"]["folder"], name))
    assert job.rollout.weight_version == 5


@pytest.fixture(scope="module")
def whole(make_config, distill) -> dict:
    config = make_config("whole", **EVERY)
    distill(config)
    return config.model_dump(mode="json", by_alias=True)


def test_a_damaged_newest_checkpoint_is_passed_over(whole, distill, tmp_path, capfd):
    again = interrupted(whole, after=4, folder=tmp_path)
    state = tmp_path / "whole" / "checkpoints" / "step-00000004" / "state" / "__0_0.distcp"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    distill(Config.model_validate(again))
    told = capfd.readouterr().out
    assert "step-00000004 is damaged" in told
    assert "continuing after step 2" in told
    assert_same(tmp_path / "whole", Path(whole["run"]["folder"], "whole"))


def test_samples_are_not_doubled_and_torch_has_nothing_to_warn_of(whole, distill, tmp_path, recwarn):
    distill(Config.model_validate(interrupted(whole, after=2, folder=tmp_path)))
    samples = [json.loads(row) for row in (tmp_path / "whole" / "samples.jsonl").read_text().splitlines()]
    assert [sample["step"] for sample in samples] == [1, 2, 3, 4, 5]
    assert list(steps_kept(tmp_path / "whole" / "trajectories")) == [1, 2, 3, 4, 5]
    warned = [each for each in recwarn if "/torch/distributed/checkpoint/" in each.filename]
    assert [str(each.message) for each in warned if each.category is UserWarning] == []  # others are not shown to users


@pytest.fixture(scope="module")
def two_kept(make_config, distill) -> Path:
    config = make_config("kept", checkpoint={"every": 1, "keep": 2})
    distill(config)
    return Path(config.run.folder, "kept")


def test_the_newest_checkpoints_are_kept(two_kept):
    assert sorted(os.listdir(two_kept / "checkpoints")) == ["step-00000004", "step-00000005"]


def test_a_checkpoint_converts_to_the_model_it_holds(two_kept, tmp_path):
    from megatron_gopd.mcore.convert import megatron_to_hf

    megatron_to_hf(two_kept / "checkpoints" / "step-00000005", tmp_path / "model", verify=True)
    assert sorted(os.listdir(tmp_path / "model")) == sorted(os.listdir(two_kept / "model"))
    weights, expected = ((folder / "model" / "model.safetensors").read_bytes() for folder in (tmp_path, two_kept))
    assert weights == expected


def change_manifest(run: Path, change) -> None:
    checkpoint = run / "checkpoints" / "step-00000002"
    about = read_manifest(checkpoint)
    change(about)
    write_manifest(checkpoint, about)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda about: about["architecture"].update(layers=9),
            "another model than the student: layers: there 9",
        ),
        (lambda about: about["data"].update(fingerprint="0"), "position in the data cannot be continued: fingerprint"),
    ],
    ids=["architecture", "data"],
)
def test_a_checkpoint_of_something_else_is_refused(whole, distill, tmp_path, change, message):
    again = interrupted(whole, after=2, folder=tmp_path)
    change_manifest(tmp_path / "whole", change)
    with pytest.raises(UserError, match=message):
        distill(Config.model_validate(again))


@pytest.mark.slow
def test_a_disk_that_is_full_ends_the_run_and_leaves_the_earlier_checkpoint(whole, distill, tmp_path):
    again = interrupted(whole, after=2, folder=tmp_path)
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(again))
    command = [sys.executable, "-m", "megatron_gopd", "train", str(tmp_path / "again.yaml")]
    limit = functools.partial(resource.setrlimit, resource.RLIMIT_FSIZE, (200_000, 200_000))
    ended = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit, timeout=240)
    assert ended.returncode == 2
    assert "error: the checkpoint of step 4 could not be written to" in ended.stderr
    assert "MiB are free there" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert os.listdir(tmp_path / "whole" / "checkpoints") == ["step-00000002"]
    distill(Config.model_validate(again))
    assert_same(tmp_path / "whole", Path(whole["run"]["folder"], "whole"))
