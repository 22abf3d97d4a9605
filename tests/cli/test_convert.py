"""The convert verb as a user starts it: what it prints, how it fails, and what a kill leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tests.cli.run_verb import ROOT, run_verb

VERB = """
import os, resource, runpy, signal, sys
from megatron_gopd.runs import atomic
{}
sys.argv[0] = "megatron-gopd"
runpy.run_module("megatron_gopd", run_name="__main__")
"""
LIMITED = "resource.setrlimit(resource.RLIMIT_FSIZE, ({}, resource.RLIM_INFINITY))"
KILLED = "atomic._sync = lambda path: os.kill(os.getpid(), signal.SIGKILL)"  # when the first file is finished


def run_after(line: str, *arguments) -> subprocess.CompletedProcess:
    """The verb in a process that runs `line` first."""
    command = [sys.executable, "-c", VERB.format(line), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240)


@pytest.fixture(scope="module")
def megatron(chat_models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "student"
    done = run_verb("convert", "hf-to-megatron", chat_models["student"], folder, "--verify")
    assert (done.returncode, done.stdout) == (0, f"{folder}: written and read back\n"), done.stderr
    return folder


def test_there_and_back(chat_models, megatron, tmp_path):
    done = run_verb("convert", "megatron-to-hf", megatron, tmp_path / "back", "--max-shard-gb", "0.001")
    assert done.returncode == 0, done.stderr
    original = chat_models["student"]
    for name in ("model.safetensors", "config.json", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (original / name).read_bytes()


def test_a_mistake_ends_in_one_message(chat_models, megatron):
    done = run_verb("convert", "hf-to-megatron", chat_models["student"], megatron)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {megatron} exists; name a new folder, or remove it\n"


@pytest.fixture(params=["hf-to-megatron", "megatron-to-hf"])
def conversion(request, chat_models, megatron):
    """(direction, a folder it can convert)"""
    sources = {"hf-to-megatron": chat_models["student"], "megatron-to-hf": megatron}
    return request.param, sources[request.param]


def check_refusal(done: subprocess.CompletedProcess, target, reason: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: {target} cannot be written: ")
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("limit", [100, 100_000])
def test_a_write_that_fails_leaves_nothing(conversion, tmp_path, limit):
    done = run_after(LIMITED.format(limit), "convert", *conversion, tmp_path / "target")
    check_refusal(done, tmp_path / "target", "File too large")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")
def test_a_full_or_read_only_disk(conversion, small_disk):
    target = small_disk / "target"
    check_refusal(run_verb("convert", *conversion, target), target, "No space left on device")
    assert list(small_disk.iterdir()) == []
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    check_refusal(run_verb("convert", *conversion, target), target, "Read-only file system")


def test_a_kill_leaves_nothing_that_looks_complete(conversion, tmp_path):
    done = run_after(KILLED, "convert", *conversion, tmp_path / "target")
    assert done.returncode == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    assert left.name.startswith(".target-")
    assert not (left / "manifest.json").exists()
    again = run_verb("convert", *conversion, tmp_path / "target")
    assert again.returncode == 0, again.stderr
