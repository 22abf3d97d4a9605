"""A SLURM cluster of simulated nodes for the whole test run, and jobs on it."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from typer.testing import CliRunner

from scripts.mini_slurm import MiniSlurm, missing

ROOT = Path(__file__).parents[2]
STAND_IN = Path(__file__).with_name("stand_in.sh")


@pytest.fixture(scope="session")
def cluster():
    """Three nodes of two made-up GPUs each; skips, and says why, where there can be none."""
    if reason := missing():
        pytest.skip(reason)
    with MiniSlurm(3, gpus=2, grace=10, kill_wait=3) as up:
        yield up


@pytest.fixture
def run_file(tmp_path) -> Path:
    """A configuration whose models and data need not be there: its job's python is a stand-in."""
    return write_run(tmp_path)


def write_run(folder: Path) -> Path:
    tree = {
        "run": {"name": "tiny", "steps": 30, "folder": str(folder / "runs")},
        "student": {"model": "student"},
        "teachers": {"math": {"model": "teacher"}},
        "data": {"train": "train.jsonl", "batch_size": 2},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture
def invoke(monkeypatch, tmp_path, capfd):
    """invoke(*arguments) -> exit code, stdout, stderr of the command line, with no SLURM in reach."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_CONF", raising=False)

    def call(*arguments) -> SimpleNamespace:
        from megatron_gopd.cli import app

        result = CliRunner().invoke(app, [str(part) for part in arguments])
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        told = capfd.readouterr()
        return SimpleNamespace(code=result.exit_code, out=result.stdout + told.out, err=result.stderr + told.err)

    return call


def submit_job(cluster, run_file: Path, play: str, *options, nodes: int = 2, gpus: int = 1) -> SimpleNamespace:
    """A job whose python is the stand-in, which plays the functions of `play` (bash)."""
    from megatron_gopd.cli import app

    run_file.with_name("play.sh").write_text(play)
    command = ["submit", run_file, "--nodes", nodes, "--gpus-per-node", gpus, "--shared-folder", "--time", 60]
    command += ["--python", STAND_IN, *options]
    done = CliRunner().invoke(app, [str(part) for part in command], env=cluster.environment)
    assert done.exit_code == 0, done.output
    job, run = re.match(r"job (\d+)", done.stdout)[1], run_file.parent / "runs" / "tiny"
    return SimpleNamespace(id=job, run=run, log=run / "slurm" / f"job-{job}.log", told=done.stdout)


@pytest.fixture
def submit(cluster, run_file):
    """submit(play, *options) -> see submit_job; cancelled after the test."""
    jobs = []

    def call(play: str, *options, **counts) -> SimpleNamespace:
        jobs.append(submit_job(cluster, run_file, play, *options, **counts))
        return jobs[-1]

    yield call
    for job in jobs:
        cluster("scancel", job.id, check=False)
