"""Verbs in processes that are forked from one which has imported everything: new, but not new interpreters."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

IMPORTED = ["megatron_gopd.cli", "megatron_gopd.ranks", "megatron_gopd.mcore.convert"]


def run_forked(*arguments: str | Path, first: str = "", timeout: float = 240) -> subprocess.CompletedProcess:
    """`megatron-gopd ARGUMENTS` in a process that runs the code `first` before; see run_verb."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    (out, to_out), (err, to_err) = context.Pipe(duplex=False), context.Pipe(duplex=False)
    process = context.Process(target=_verb, args=(list(map(str, arguments)), first, to_out, to_err))
    process.start()
    for end in (to_out, to_err):
        end.close()
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        raise subprocess.TimeoutExpired(arguments, timeout, _all_of(out), _all_of(err))
    return subprocess.CompletedProcess(arguments, process.exitcode, _all_of(out), _all_of(err))


def _all_of(pipe: Connection) -> str:
    """What is short enough for a pipe to hold it."""
    with os.fdopen(os.dup(pipe.fileno())) as file:
        return file.read()


def _verb(arguments: list[str], first: str, out: Connection, err: Connection) -> None:
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    exec(first, {})
    sys.argv = ["megatron-gopd", *arguments]
    runpy.run_module("megatron_gopd", run_name="__main__")
