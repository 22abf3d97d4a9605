"""Does a program pass its tests? The tests stay with processes that the program cannot look into."""

from __future__ import annotations

import fcntl
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile

from megatron_gopd.config.schema import Sandbox
from megatron_gopd.rewards.sandbox import checker
from megatron_gopd.rewards.sandbox.clock import Clock
from megatron_gopd.rewards.sandbox.jail import MEBIBYTE, Jail
from megatron_gopd.rewards.sandbox.keeper import in_jail
from megatron_gopd.rewards.sandbox.programs import OUTPUT_SLACK, Outcome, start, start_python, watch
from megatron_gopd.rewards.tests import Stdio, Tests, same_output

FUTURE = re.compile(r"^from __future__ import (?:\([^)]*\)|.+)", re.MULTILINE)
SERVER = Path(__file__).with_name("server.py").read_text()


def judge(program: str, tests: Tests, settings: Sandbox) -> str | None:
    """None when `program` passes all tests, else why it does not: "test 3: wrong answer", "test 1: timeout", ...

    Raises SandboxError where the kernel does not let this process build the sandbox that `settings` asks for.
    """
    if problem := too_large(tests, settings):
        return problem
    files = {"solution.py": _behind(tests.setup, program), "server.py": SERVER}
    run = _on_stdio if isinstance(tests, Stdio) else _on_calls
    try:
        return in_jail(partial(run, tests), files, _largest_input(tests), settings)["problem"]
    except TimeoutError:
        return "timeout"


def too_large(tests: Tests, settings: Sandbox) -> str | None:
    """What no program could read, which is no fault of any answer; None for tests that fit."""
    size = len(tests.setup) + _largest_input(tests)
    if size <= settings.memory_mb * MEBIBYTE:
        return None
    return f"the setup and largest input hold {size / MEBIBYTE:,.0f} MiB, more than sandbox.memory_mb"


def _largest_input(tests: Tests) -> int:
    return max((len(given) for given, _ in tests.cases), default=0) if isinstance(tests, Stdio) else 0


def _behind(setup: str, program: str) -> str:
    """`program` after `setup`, its imports from __future__ before both: Python has them nowhere else."""
    return "\n".join([*FUTURE.findall(program), setup, FUTURE.sub("", program)]) if setup else program


def _on_stdio(tests: Stdio, jail: Jail) -> dict:
    """The program anew for each input."""
    clock = Clock(jail)
    for number, (given, expected) in enumerate(tests.cases, 1):
        clock.start_test()
        outcome = _run_once(jail, given, clock, len(expected.encode()))
        problem = outcome.why
        if problem is None and not same_output(outcome.output.decode(errors="replace"), expected):
            problem = "wrong answer"
        if problem:
            return {"problem": f"test {number}: {problem}"}
        jail.clean()
    return {"problem": None}


def _run_once(jail: Jail, given: str, clock: Clock, expected_bytes: int) -> Outcome:
    output, errors = _pipe_for(jail), _pipe_for(jail)
    with _input(jail, given.encode()) as stdin:
        pid = start_python(jail, "solution.py", {0: stdin, 1: output[1], 2: errors[1]})
    os.close(output[1])
    os.close(errors[1])
    return watch(jail, pid, (output[0], errors[0]), clock, expected_bytes + OUTPUT_SLACK)


@contextmanager
def _input(jail: Jail, given: bytes) -> Iterator[int]:
    """A file with all of it, for a program may leave its input unread; it takes no room in the program's folder."""
    linux = sys.platform == "linux"
    with os.fdopen(os.memfd_create("stdin", os.MFD_ALLOW_SEALING), "w+b") if linux else TemporaryFile() as file:
        file.write(given)
        file.seek(0)
        if linux:
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
        jail.give(file.fileno())
        yield file.fileno()


def _pipe_for(jail: Jail) -> tuple[int, int]:
    reading, writing = os.pipe()
    jail.give(writing)
    return reading, writing


def _on_calls(tests: Tests, jail: Jail) -> dict:
    """The program once, as a server of its functions; beside it, under the same limits, a checker that holds the tests.

    The checker was forked and never became another program, so it stays hidden from processes of its user.
    """
    requests, replies, verdict = (os.pipe() for _ in range(3))
    errors = _pipe_for(jail)
    null = os.open(os.devnull, os.O_RDWR)
    clock = Clock(jail, marked=True)
    start_python(jail, "server.py", {0: null, 1: null, 2: errors[1], 3: requests[0], 4: replies[1]})
    check = partial(checker.check, tests)
    pid = start(jail, check, {0: null, 1: null, 2: null, 3: requests[1], 4: replies[0], 5: verdict[1]})
    for descriptor in (*requests, *replies, verdict[1], errors[1], null):
        os.close(descriptor)
    outcome = watch(jail, pid, (verdict[0], errors[0]), clock, OUTPUT_SLACK)
    return {"problem": checker.verdict(outcome)}
