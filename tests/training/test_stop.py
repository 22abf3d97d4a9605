"""A signal ends a run after a step, on all ranks the same; it goes on as if it had not been stopped."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from scripts.mini_slurm import until
from tests.ranks import ROOT, environment_of_ranks, torchrun
from tests.training.runs_on_ranks import metrics_of, two_teachers

STEPS = {"run": {"steps": 12}, "checkpoint": {"every": 50}}
SLOW = {"patient": 8, "twice": 25}  # seconds


@pytest.fixture(scope="module")
def configurations(chat_models, questions, tmp_path_factory) -> dict[str, Path]:
    """Names of one run. Steps of patient and twice take as long as SLOW says, but for the first."""
    folder, files = tmp_path_factory.mktemp("stopped"), {}
    for name in ("whole", "stopped", "alone", *SLOW):
        tree = two_teachers(chat_models, questions, folder, name)
        tree = {key: value | STEPS.get(key, {}) if isinstance(value, dict) else value for key, value in tree.items()}
        if name in SLOW:
            tree["rewards"] = slow_reward(folder, name)
        files[name] = folder / f"{name}.yaml"
        files[name].write_text(yaml.safe_dump(tree | {"checkpoint": STEPS["checkpoint"]}))
    return files


def slow_reward(folder: Path, name: str) -> str:
    """One response of each step but the first takes its time."""
    (folder / f"{name}.py").write_text(
        "import contextlib, pathlib, time\n"
        "def reward(response, label, **row):\n"
        f"    metrics = pathlib.Path({str(folder / name / 'metrics.jsonl')!r})\n"
        "    with contextlib.suppress(FileExistsError):\n"
        "        if metrics.exists() and (rows := metrics.read_bytes().count(b'\\n')):\n"
        f"            pathlib.Path({str(folder)!r}, f'{name}-{{rows}}').mkdir()\n"
        f"            time.sleep({SLOW[name]})\n"
        "    return len(response) % 3 / 2\n"
    )
    return f"{folder / name}.py:reward"


@contextlib.contextmanager
def started(configuration: Path, outcome: Path, ranks: int, **environment: str) -> Iterator[subprocess.Popen]:
    """A run that has taken a step, by the verb or by torchrun; all of its processes end with the block."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command += ["--nproc-per-node", str(ranks), "-m"]
    command = [*(command if ranks > 1 else [sys.executable, "-m"]), "megatron_gopd", "train", str(configuration)]
    metrics = configuration.with_suffix("") / "metrics.jsonl"
    before = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
    environment = environment_of_ranks() | {"MEGATRON_GOPD_OUTCOME": str(outcome)} | environment
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    launcher = subprocess.Popen(command, cwd=ROOT, env=environment, **pipes, preexec_fn=hears_ctrl_c)
    processes = []
    try:
        assert until(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > before, 240, 0.01)
        processes = psutil.Process(launcher.pid).children(recursive=True)
        yield launcher
        assert until(lambda: not any(map(runs, processes)), 60, 0.1), "a process outlived its run"
    finally:
        for process in [*processes, launcher]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def hears_ctrl_c() -> None:
    """A shell starts what it puts in the background deaf to it, and this suite may be such a thing."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def rank(launcher: subprocess.Popen, number: int) -> psutil.Process:
    """The process that torchrun knows as this rank."""
    return next(each for each in psutil.Process(launcher.pid).children() if each.environ().get("RANK") == str(number))


def assert_stopped(configuration: Path, outcome: Path, number: signal.Signals, output: str) -> None:
    """After a step, with its checkpoint, and the command that goes on."""
    said = json.loads(outcome.read_text())
    done = len(metrics_of(configuration.with_suffix("") / "metrics.jsonl"))
    assert (said["exit_code"], said["kind"]) == (75, "interrupted"), output
    assert f"{number.name} after step {done} of 12; the checkpoint of step {done} is in" in said["message"]
    assert said["message"].endswith(f"megatron_gopd train {configuration}")
    assert done < 12


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGUSR1, marks=pytest.mark.slow), signal.SIGTERM], ids=["USR1", "TERM"]
)
def test_one_rank_hears_and_all_stop_at_one_step(configurations, tmp_path, number):
    with started(configurations["stopped"], tmp_path / "outcome", 2) as launcher:
        rank(launcher, 1).send_signal(number)
        output, _ = launcher.communicate(timeout=240)
    assert_stopped(configurations["stopped"], tmp_path / "outcome", number, output)


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_the_ranks_outlive_the_patience_of_torchrun(configurations, tmp_path, number):
    """It waits for two seconds here, and the step that they are in takes more."""
    configuration, patience = configurations["patient"], {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "2"}
    with started(configuration, tmp_path / "outcome", 2, **patience) as launcher:
        launcher.send_signal(number)
        output, _ = launcher.communicate(timeout=240)
        assert until((tmp_path / "outcome").exists, 60, 0.1), output
    assert_stopped(configuration, tmp_path / "outcome", number, output)


@pytest.mark.slow
def test_ctrl_c_under_torchrun_a_second_time_ends_at_once(configurations, tmp_path):
    with started(configurations["twice"], tmp_path / "outcome", 2) as launcher:
        launcher.send_signal(signal.SIGINT)
        time.sleep(1)
        launcher.send_signal(signal.SIGINT)
        launcher.wait(20)
    assert not (tmp_path / "outcome").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_process_alone_stops_the_same_way(configurations, tmp_path, number):
    with started(configurations["alone"], tmp_path / "outcome", 1) as process:
        process.send_signal(number)
        output, _ = process.communicate(timeout=240)
    assert process.returncode == 75
    assert "Traceback" not in output
    assert_stopped(configurations["alone"], tmp_path / "outcome", number, output)


def test_ctrl_c_a_second_time_ends_at_once(configurations, tmp_path):
    with started(configurations["twice"], tmp_path / "outcome", 1) as process:
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.5)
        assert process.wait(20) == -signal.SIGINT  # the step would take longer
    output = process.stdout.read()
    assert output.count("Ctrl-C again ends it at once") == 1
    assert "Traceback" not in output


@pytest.mark.slow
def test_what_was_stopped_goes_on_bit_for_bit(configurations):
    """After the stops above."""
    for name in ("whole", "stopped"):
        torchrun(2, "-m", "megatron_gopd", "train", configurations[name])
    stopped, whole = (configurations[name].with_suffix("") for name in ("stopped", "whole"))
    assert metrics_of(stopped / "metrics.jsonl") == metrics_of(whole / "metrics.jsonl")
    weights, others = ((run / "model" / "model.safetensors").read_bytes() for run in (stopped, whole))
    assert weights == others
