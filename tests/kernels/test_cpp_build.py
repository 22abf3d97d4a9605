"""The C++ kernel is built once, however many ranks want it, and not needed where it cannot be."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests.kernels.build_on_ranks import build
from tests.ranks import on_ranks

ASK = (
    "import torch; from megatron_gopd.kernels import linear_logprob as f;"
    "print([f(torch.ones(2, 4), torch.ones(5, 4), torch.arange(2))[0].tolist() for _ in range(2)])"
)


def ask(tmp_path, monkeypatch, compiler: str, rank: str = "0") -> subprocess.CompletedProcess:
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    return subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)


def broken_compiler(tmp_path):
    compiler = tmp_path / "broken"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] || { echo "tiles.h:1: error: no such thing" >&2; exit 1; }\n')
    compiler.chmod(0o755)
    return str(compiler)


def test_without_a_compiler_plain_torch_does_it_with_one_warning(tmp_path, monkeypatch):
    done = ask(tmp_path, monkeypatch, "no-such-compiler")
    assert "-1.6094" in done.stdout
    assert done.stderr.count("the LM head runs in plain torch") == 1
    assert "no-such-compiler was not found" in done.stderr
    assert "Install g++" in done.stderr


def test_a_compiler_that_fails_is_quoted(tmp_path, monkeypatch):
    assert "(tiles.h:1: error: no such thing)" in ask(tmp_path, monkeypatch, broken_compiler(tmp_path)).stderr


def test_nothing_half_built_stays_behind(tmp_path, monkeypatch):
    ask(tmp_path, monkeypatch, broken_compiler(tmp_path))
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == ["lock"]


def test_only_rank_0_warns(tmp_path, monkeypatch):
    assert "plain torch" not in ask(tmp_path, monkeypatch, "no-such-compiler", rank="1").stderr


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_four_ranks_at_once_compile_once(tmp_path):
    counted = tmp_path / "c++"
    counted.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] || touch "{tmp_path}/run.$$"\nexec "{shutil.which("c++")}" "$@"\n'
    )
    counted.chmod(0o755)
    found = on_ranks(4, build, cache=str(tmp_path / "cache"), counted=str(counted))
    assert found == {"libraries": 1, "runs": 1, "loaded": [True] * 4}
