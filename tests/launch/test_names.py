"""`submit --new-name` and `--overwrite`: chosen when the job is submitted, so that a requeue is the same run."""

from __future__ import annotations

import shlex

import pytest

from megatron_gopd.config import load_config
from megatron_gopd.launch.request import Request
from megatron_gopd.runs import RunFolder
from megatron_gopd.runs.folder import remove


@pytest.fixture
def begun(run_file):
    """The run of the file, which has measured something."""
    config = load_config(run_file)
    with RunFolder.open(config) as folder:
        folder.metrics.write_text('{"step": 1}\n')
    return config


def test_the_script_holds_the_name(run_file, begun, invoke):
    options = ("--nodes", 1, "--gpus-per-node", 1, "--mem", "1G", "--time", "1:00:00", "--dry-run", "--new-name")
    done = invoke("submit", run_file, *options)
    assert done.code == 0, done.err
    assert "#SBATCH --job-name=tiny-2" in done.out
    assert "overrides=(run.name=tiny-2)" in done.out
    said = next(line for line in done.out.splitlines() if line.startswith("# Written by: "))
    assert "--new-name" not in said
    assert said.endswith("--set run.name=tiny-2") or "--set run.name=tiny-2 " in said
    assert not (run_file.parent / "runs" / "tiny-2").exists()


def test_the_runs_of_a_sweep_get_one_number(run_file, tmp_path):
    (tmp_path / "runs" / "tiny-seed2").mkdir(parents=True)
    request = Request(run_file, sweep=("run.seed=1,2",)).renamed()
    assert [config.run.name for _, config in request.settings()] == ["tiny-2-seed1", "tiny-2-seed2"]


def test_what_is_overwritten_goes_but_for_its_jobs_logs(begun, tmp_path):
    jobs = tmp_path / "runs" / "tiny" / "slurm"
    jobs.mkdir()
    remove(begun)
    assert [path.name for path in (tmp_path / "runs" / "tiny").iterdir() if path.name != ".lock"] == ["slurm"]


def test_nothing_is_there_to_be_removed(run_file, tmp_path):
    remove(load_config(run_file))
    assert not (tmp_path / "runs").exists()


def test_one_or_the_other(run_file, invoke):
    done = invoke("submit", run_file, *shlex.split("--nodes 1 --gpus-per-node 1 --new-name --overwrite"))
    assert (done.code, "give one of them" in done.err) == (2, True)
