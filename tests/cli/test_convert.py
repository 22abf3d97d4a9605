"""The convert verb as a user starts it: what it prints, how it fails, and what a kill leaves."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from tests.cli.forked import run_forked
from tests.cli.run_verb import run_verb

LIMITED = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({}, resource.RLIM_INFINITY))"
KILLED = """
import os, signal
from megatron_gopd.runs import atomic
atomic._sync = lambda path: os.kill(os.getpid(), signal.SIGKILL)  # when the first file is finished
"""


@pytest.fixture(scope="module")
def megatron(chat_models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "student"
    done = run_verb("convert", "hf-to-megatron", chat_models["student"], folder, "--verify")
    assert (done.returncode, done.stdout) == (0, f"{folder}: written and read back\n"), done.stderr
    return folder


def test_there_and_back(chat_models, megatron, tmp_path):
    done = run_forked("convert", "megatron-to-hf", megatron, tmp_path / "back", "--max-shard-gb", "0.001")
    assert done.returncode == 0, done.stderr
    original = chat_models["student"]
    for name in ("model.safetensors", "config.json", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (original / name).read_bytes()


def test_a_mistake_ends_in_one_message(chat_models, megatron):
    done = run_forked("convert", "hf-to-megatron", chat_models["student"], megatron)
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
    done = run_forked("convert", *conversion, tmp_path / "target", first=LIMITED.format(limit))
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
    check_refusal(run_forked("convert", *conversion, target), target, "No space left on device")
    assert list(small_disk.iterdir()) == []
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    check_refusal(run_forked("convert", *conversion, target), target, "Read-only file system")


def test_a_kill_leaves_nothing_that_looks_complete(conversion, tmp_path):
    done = run_forked("convert", *conversion, tmp_path / "target", first=KILLED)
    assert done.returncode == -signal.SIGKILL
    [left] = tmp_path.iterdir()
    assert left.name.startswith(".target-")
    assert not (left / "manifest.json").exists()
    again = run_forked("convert", *conversion, tmp_path / "target")
    assert again.returncode == 0, again.stderr
