"""The command: mistakes, and sections without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from scripts.gpu import check as program
from scripts.gpu.checks.bench import Bench, environment
from scripts.gpu.checks.children import Children
from scripts.gpu.checks.result import Skipped
from scripts.gpu.sections import SECTIONS, loop

ROOT = Path(__file__).parents[2]
CARD = {"name": "NVIDIA H100 80GB HBM3", "capability": 90, "memory_gib": 79.0}


def gpu_check(*arguments: str, json_to: Path, timeout: float) -> subprocess.CompletedProcess:
    command = [sys.executable, "scripts/gpu/check.py", *arguments, "--json", str(json_to)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    """A Bench as `--device cpu` has it."""
    folder = tmp_path_factory.mktemp("gpu-check")
    bench = Bench(False, True, folder, {}, Children(2, environment(ROOT, gpu=False), folder / "logs"))
    bench.facts = program.facts(bench)
    return bench


@pytest.fixture
def facts_of(tmp_path, monkeypatch):
    """facts_of(**what facts.py found) -> program.facts of a GPU machine."""

    def facts(**found):
        bench = Bench(True, True, tmp_path, {}, Children(1, {}, tmp_path))
        monkeypatch.setattr(bench, "program", lambda *_, **__: {"gpu": CARD, "te_problem": None} | found)
        return program.facts(bench)

    return facts


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--only", "kernels"], "there is no such section; write some of kernel,loop,fp8,moe,ranks,resume,sglang"),
        (["--only", ","], "names no section"),
        (["--json", "/dev/null/found.json"], "name a file in a folder that can be written"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(arguments, told, capsys, tmp_path):
    assert program.main(["--json", str(tmp_path / "found.json"), *arguments]) == 2
    said = capsys.readouterr()
    assert told in said.err and len(said.err.splitlines()) == 1 and not said.out


def test_no_gpu_is_a_mistake(facts_of):
    with pytest.raises(program.Mistake, match="no NVIDIA GPU; run this on a machine with one, or with --device cpu"):
        facts_of(gpu=None)


def test_a_gpu_without_bf16_is_a_mistake(facts_of):
    with pytest.raises(program.Mistake, match="this GPU, Tesla T4, has 7.5"):
        facts_of(gpu=CARD | {"name": "Tesla T4", "capability": 75})


def test_a_te_that_does_not_import_is_a_mistake_that_says_what_it_said(facts_of):
    with pytest.raises(program.Mistake, match="does not import: OSError: undefined symbol"):
        facts_of(te_problem="it does not import: OSError: undefined symbol")


def test_a_machine_without_te_is_no_mistake(facts_of):
    assert facts_of(te_problem="it is not installed")["gpu"] == CARD


def test_the_kernels_hold_on_a_cpu(tmp_path):
    done = gpu_check("--device", "cpu", "--quick", "--only", "kernel", json_to=tmp_path / "found.json", timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "gpu-check: 13 checks: 13 hold, 0 fail, 0 skipped"
    assert json.loads((tmp_path / "found.json").read_text())["hold"] == 13


def test_a_check_that_is_told_to_stop_leaves_no_child(tmp_path):
    command = [sys.executable, "scripts/gpu/check.py", "--device", "cpu", "--only", "kernel"]
    process = subprocess.Popen([*command, "--json", str(tmp_path / "found.json")], cwd=ROOT)
    while not (children := psutil.Process(process.pid).children(recursive=True)):
        time.sleep(0.05)
    process.terminate()
    assert process.wait(60) == 143
    assert not [child for child in children if child.is_running()]


@pytest.mark.slow
def test_a_gopd_run_without_te_holds_on_a_cpu(on_cpu):
    check = loop.gopd(on_cpu, "float32", te=False)
    assert check.holds, check.figure


def test_without_te_its_checks_are_skipped(on_cpu):
    with pytest.raises(Skipped, match="no Transformer Engine: there is no GPU"):
        loop.with_te(on_cpu)


@pytest.mark.slow
@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_holds_on_a_cpu(section, tmp_path):
    done = gpu_check("--device", "cpu", "--quick", "--only", section, json_to=tmp_path / "found.json", timeout=590)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_holds_on_this_gpu(section, tmp_path):
    import torch

    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    done = gpu_check("--only", section, json_to=tmp_path / "found.json", timeout=590)
    assert done.returncode == 0, done.stdout + done.stderr
    if "skipped" in (last := done.stdout.splitlines()[-1]) and " 0 hold, 0 fail" in last:
        pytest.skip(done.stdout)
