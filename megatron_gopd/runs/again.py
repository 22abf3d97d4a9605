"""The command that goes on with a run, as the user started it."""

from __future__ import annotations

import functools
import os
import shlex
import shutil
import sys

import psutil

from megatron_gopd.config import Config

OF_ONE_START = ("--overwrite", "--new-name")  # said again, they would begin another run
VERB = "train"


def typed_command() -> str:
    """What the user typed to start this process."""
    return shlex.join(_words())


def command_again(config: Config) -> str | None:
    """What to type to go on with the run of `config`; None where this process was not started by the verb."""
    words = _words()
    if VERB not in words or not any("megatron" in word for word in words[: words.index(VERB)]):
        return None
    kept = [word for word in words if word not in OF_ONE_START]
    if "--new-name" in words:
        kept.append(f"run.name={config.run.name}")
    if config.checkpoint.resume == "never":
        kept.append("checkpoint.resume=auto")
    return shlex.join(kept)


def _words() -> list[str]:
    return _launch() or _shortened(sys.orig_argv)


@functools.cache
def _launch() -> list[str] | None:
    """The command line of the torchrun that started this process, and that may be gone when it is asked for again."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    try:
        for process in psutil.Process().parents():
            words = process.cmdline()
            if any(word.endswith(("torchrun", "torch.distributed.run", "torch/distributed/run.py")) for word in words):
                return _shortened(words)
    except psutil.Error:  # it is gone
        pass
    return None


def _shortened(words: list[str]) -> list[str]:
    """Without the interpreter before a script of its own, and with programs as one would type them."""
    names = ("megatron-gopd", "torchrun")
    if len(words) > 1 and os.path.basename(words[1]) in names:
        words = words[1:]
    return [_typed(words[0]), *words[1:]]


def _typed(program: str) -> str:
    if shutil.which(os.path.basename(program)) == program:
        return os.path.basename(program)
    inside = os.path.isabs(program) and program.startswith(os.getcwd() + os.sep)
    return os.path.relpath(program) if inside else program
