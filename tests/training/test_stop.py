"""A signal ends a run after a step, on all ranks the same; it goes on as if it had not been stopped."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from scripts.mini_slurm import until
from tests.ranks import ROOT, environment_of_ranks, torchrun
from tests.training.runs_on_ranks import metrics_of, two_teachers

STEPS = {"run": {"steps": 12}, "checkpoint": {"every": 50}}


@pytest.fixture(scope="module")
def configurations(chat_models, questions, tmp_path_factory) -> dict[str, Path]:
    """whole and stopped: two names of one run, on two data-parallel ranks."""
    folder, files = tmp_path_factory.mktemp("stopped"), {}
    for name in ("whole", "stopped"):
        tree = two_teachers(chat_models, questions, folder, name)
        tree = {key: value | STEPS.get(key, {}) if isinstance(value, dict) else value for key, value in tree.items()}
        files[name] = folder / f"{name}.yaml"
        files[name].write_text(yaml.safe_dump(tree | {"checkpoint": STEPS["checkpoint"]}))
    return files


def ranks_of(launcher: subprocess.Popen) -> list[psutil.Process]:
    children = psutil.Process(launcher.pid).children(recursive=True)
    return [child for child in children if child.environ().get("RANK") is not None and "train" in child.cmdline()]


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGUSR1, marks=pytest.mark.slow), signal.SIGTERM], ids=["USR1", "TERM"]
)
def test_one_rank_hears_and_all_stop_at_one_step(configurations, tmp_path, number):
    configuration = configurations["stopped"]
    run, outcome = configuration.with_suffix(""), tmp_path / "outcome.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", "2", "-m", "megatron_gopd", "train", str(configuration)]
    before = len((run / "metrics.jsonl").read_text().splitlines()) if run.exists() else 0
    environment = environment_of_ranks() | {"MEGATRON_GOPD_OUTCOME": str(outcome)}
    launcher = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        metrics = run / "metrics.jsonl"
        assert until(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > before, 240, 0.01)
        second = next(rank for rank in ranks_of(launcher) if rank.environ()["RANK"] == "1")
        second.send_signal(number)
        output, _ = launcher.communicate(timeout=240)
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in [*psutil.Process(launcher.pid).children(recursive=True), launcher]:
                process.kill()
    said = json.loads(outcome.read_text())
    done = len(metrics_of(metrics))
    assert (said["exit_code"], said["kind"]) == (75, "interrupted"), output.decode()
    assert f"{number.name} after step {done} of 12; the checkpoint of step {done} is in" in said["message"]
    assert before < done < 12


@pytest.mark.slow
def test_what_was_stopped_goes_on_bit_for_bit(configurations):
    """After the stops above."""
    for configuration in configurations.values():
        torchrun(2, "-m", "megatron_gopd", "train", configuration)
    stopped, whole = (configurations[name].with_suffix("") for name in ("stopped", "whole"))
    assert metrics_of(stopped / "metrics.jsonl") == metrics_of(whole / "metrics.jsonl")
    weights, others = ((run / "model" / "model.safetensors").read_bytes() for run in (stopped, whole))
    assert weights == others
