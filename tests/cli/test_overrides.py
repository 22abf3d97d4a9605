"""Overrides, the version and a shell's completion: the same of every verb."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import megatron_gopd
from tests.config.minimal import MINIMAL

OPTIONS = {
    "train": ["--dry-run"],
    "plan": [],
    "doctor": [],
    "submit": ["--nodes", "1", "--gpus-per-node", "1", "--dry-run"],
}


@pytest.fixture
def call(tmp_path, monkeypatch):
    """call(verb, *arguments) -> what the command line answers, of MINIMAL"""
    monkeypatch.delenv("SLURM_CONF", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(MINIMAL)

    def call(verb: str, *arguments: str):
        from megatron_gopd.cli import app

        return CliRunner().invoke(app, [verb, "run.yaml", *arguments, *OPTIONS[verb]])

    return call


@pytest.mark.parametrize("verb", OPTIONS)
@pytest.mark.parametrize("arguments", [["optimizer.lr=fast"], ["--set", "optimizer.lr=fast"]])
def test_an_override_is_read_by_every_verb_in_both_ways(call, verb, arguments):
    answer = call(verb, *arguments)
    assert answer.exit_code == 2
    assert answer.stderr.startswith("error: override 'optimizer.lr=fast': optimizer.lr: a number is expected")


@pytest.mark.parametrize("verb", ["train", "submit"])
def test_set_has_the_last_word(call, verb):
    answer = call(verb, "--set", "run.name=set", "run.name=positional", "optimizer.lr=1e-3")
    assert answer.exit_code == 0, answer.output
    assert {"train": "name: set\n", "submit": "runs/set"}[verb] in answer.stdout


def test_the_version():
    from megatron_gopd.cli import app

    answer = CliRunner().invoke(app, ["--version"])
    assert (answer.exit_code, answer.stdout) == (0, f"megatron-gopd {megatron_gopd.__version__}\n")


def test_a_shell_completes_verbs_and_options():
    program = Path(sys.executable).with_name("megatron-gopd")

    def completed(*words: str) -> list[str]:
        asked = {"COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
        environment = os.environ | asked | {"_MEGATRON_GOPD_COMPLETE": "complete_bash"}
        return subprocess.run([program], env=environment, capture_output=True, text=True).stdout.split()

    assert completed("megatron-gopd", "do") == ["doctor"]
    assert "--dry-run" in completed("megatron-gopd", "train", "--")
