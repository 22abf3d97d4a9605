"""What sections decide from the machine, and what becomes of ranks that fail: without a GPU."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from scripts.gpu.checks import rank_runs
from scripts.gpu.checks.bench import Bench
from scripts.gpu.checks.cases import checks_of
from scripts.gpu.checks.children import ChildError, Children
from scripts.gpu.checks.runs import Run
from scripts.gpu.sections import SECTIONS, phases

GIB = 2**30
WITHOUT = {
    "nccl": [2, 28, 9],
    "versions": {"sglang": None},
    "te_problem": "it is not installed",
    "gpu": {"name": "NVIDIA H100 80GB HBM3"},
}
DAEMON = """#!/bin/sh
echo "$CUDA_MPS_PIPE_DIRECTORY $* $([ "$1" = -d ] || cat)" >>"$(dirname "$0")/calls"
"""


@pytest.fixture
def bench(tmp_path):
    """Of a machine with a GPU and little else."""
    return Bench(True, False, tmp_path, WITHOUT, Children(1, os.environ, tmp_path / "logs"))


@pytest.mark.parametrize(
    "section, why",
    [
        ("ranks", "NCCL 2.28.9 refuses two ranks on one GPU, 2.30 does not"),
        ("sglang", "SGLang is not installed"),
        ("fp8", "no Transformer Engine: it is not installed"),
    ],
)
def test_a_section_without_its_library_is_one_row_that_says_why(bench, section, why):
    (case,) = SECTIONS[section](bench)
    (check,) = checks_of(case)
    assert why in check.figure and check.holds is None


def test_a_recipe_that_the_card_lacks_is_named_and_skipped(bench):
    bench.facts = WITHOUT | {"te_problem": None, "fp8": {"mxfp8": "compute capability 10.0 or higher required"}}
    (case,) = [case for case in SECTIONS["fp8"](bench) if case.name == "mxfp8 student"]
    (check,) = checks_of(case)
    assert (check.figure, check.holds) == ("skipped: mxfp8: compute capability 10.0 or higher required", None)


@pytest.mark.parametrize("gib, holds", [(10.0, True), (20.0, False)])
def test_a_phase_must_fit_into_what_was_planned(bench, gib, holds):
    run = SimpleNamespace(rows=[{"timing/train_s": 2.0}])
    planned = {"seconds": {"update": 1.0}, "memory_bytes": {"update": {"weights": 10 * GIB}}}
    check = phases._check(bench, run, {"train": gib * GIB}, planned, "train", "update")
    assert (check.holds, check.bound) == (holds, "plan: 1.00 s, 10.00 GiB")


def test_after_a_job_that_fails_the_others_run_in_another_life(bench, monkeypatch):
    def life(name, *command, **_):
        jobs, done = map(Path, command[-2:])
        for job in json.loads(jobs.read_text()):
            if job["name"] == "bad":
                raise ChildError("ended with 1: why")
            with done.open("a") as names:
                names.write(job["name"] + "\n")

    monkeypatch.setattr(bench.children, "python", life)
    jobs = [{"name": name} for name in ("first", "bad", "last")]
    assert rank_runs.run_jobs(bench, jobs, 1, "ranks") == {"first": "", "bad": "ended with 1: why", "last": ""}


def test_mps_is_started_for_several_ranks_of_a_gpu_and_ended(bench, monkeypatch, tmp_path):
    daemon = tmp_path / rank_runs.MPS
    daemon.write_text(DAEMON)
    daemon.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with rank_runs.sharing(bench, 2) as extra:
        assert extra["NCCL_MULTI_RANK_GPU_ENABLE"] == "1" and extra["CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"] == "50"
    pipe = extra["CUDA_MPS_PIPE_DIRECTORY"]
    assert (tmp_path / "calls").read_text().split("\n")[:2] == [f"{pipe} -d ", f"{pipe}  quit"]


def test_runs_of_different_bits_are_told_apart(tmp_path):
    for name, loss in (("one", 1.0), ("other", 1.5)):
        (tmp_path / name / "model").mkdir(parents=True)
        (tmp_path / name / "model" / "model.safetensors").write_text(str(loss))
        row = {"step": 1, "loss": loss, "tokens_per_s": loss, "timing/step_s": loss}
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    one, other = Run(tmp_path / "one"), Run(tmp_path / "other")
    assert one.differences(other) == ["step 1: loss", "model.safetensors"]
    assert one.differences(one) == []
