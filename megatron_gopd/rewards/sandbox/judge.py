"""Does a program pass its tests? The tests stay with processes that the program cannot look into."""

from __future__ import annotations

import os
import re
import tempfile
import time
from functools import partial
from pathlib import Path

from megatron_gopd.config.schema import Sandbox
from megatron_gopd.rewards.sandbox import checker
from megatron_gopd.rewards.sandbox.jail import Jail, in_jail
from megatron_gopd.rewards.sandbox.programs import OUTPUT_SLACK, Outcome, start, start_python, watch
from megatron_gopd.rewards.tests import Stdio, Tests, same_output

FUTURE = re.compile(r"^from __future__ import (?:\([^)]*\)|.+)", re.MULTILINE)
SERVER = Path(__file__).with_name("server.py").read_text()


def judge(program: str, tests: Tests, settings: Sandbox) -> str | None:
    """None when `program` passes all tests, else why it does not: "test 3: wrong answer", "test 1: timeout", ...

    Raises SandboxError where the kernel does not let this process build the sandbox that `settings` asks for.
    """
    files = {"solution.py": _behind(tests.setup, program), "server.py": SERVER}
    run = _on_stdio if isinstance(tests, Stdio) else _on_calls
    try:
        return in_jail(partial(run, tests), files, settings)["problem"]
    except TimeoutError:
        return "timeout"


def _behind(setup: str, program: str) -> str:
    """`program` after `setup`, its imports from __future__ before both: Python has them nowhere else."""
    return "\n".join([*FUTURE.findall(program), setup, FUTURE.sub("", program)]) if setup else program


def _on_stdio(tests: Stdio, jail: Jail) -> dict:
    """The program anew for each input."""
    end = time.monotonic() + jail.settings.seconds
    for number, (given, expected) in enumerate(tests.cases, 1):
        seconds = min(jail.settings.seconds_per_test, end - time.monotonic())
        outcome = _run_once(jail, given, seconds, len(expected.encode()))
        problem = outcome.why
        if problem is None and not same_output(outcome.output.decode(errors="replace"), expected):
            problem = "wrong answer"
        if problem:
            return {"problem": f"test {number}: {problem}"}
        jail.clean()
    return {"problem": None}


def _run_once(jail: Jail, given: str, seconds: float, expected_bytes: int) -> Outcome:
    output, errors = _pipe_for(jail), _pipe_for(jail)
    with tempfile.TemporaryFile(dir=jail.scratch) as stdin:  # whole: a program may leave its input unread
        stdin.write(given.encode())
        stdin.seek(0)
        jail.give(stdin.fileno())
        pid = start_python(jail, "solution.py", {0: stdin.fileno(), 1: output[1], 2: errors[1]})
    os.close(output[1])
    os.close(errors[1])
    return watch(jail, pid, (output[0], errors[0]), seconds=seconds, output_bytes=expected_bytes + OUTPUT_SLACK)


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
    start_python(jail, "server.py", {0: null, 1: null, 2: errors[1], 3: requests[0], 4: replies[1]})
    check = partial(checker.check, tests, jail.settings.seconds_per_test, f"{jail.folder}/packages")
    pid = start(jail, check, {0: null, 1: verdict[1], 2: null, 3: requests[1], 4: replies[0]})
    for descriptor in (*requests, *replies, verdict[1], errors[1], null):
        os.close(descriptor)
    outputs = (verdict[0], errors[0])
    outcome = watch(jail, pid, outputs, seconds=jail.settings.seconds, output_bytes=OUTPUT_SLACK)
    if outcome.problem or not outcome.output:
        return {"problem": outcome.problem or "the tests were ended"}
    return {"problem": checker.verdict(outcome)}
