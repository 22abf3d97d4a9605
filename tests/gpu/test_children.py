"""gpu-check's child processes: limits, last words, and that none is left behind."""

from __future__ import annotations

import os
import threading
import time

import psutil
import pytest

from scripts.gpu.checks.children import ChildError, Children, last_error

SLEEPER = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])"


@pytest.fixture
def children(tmp_path):
    return Children(2, os.environ, tmp_path)


def of_this_test() -> list[psutil.Process]:
    return [each for each in psutil.Process().children(recursive=True) if "time.sleep(600)" in str(each.cmdline())]


def test_what_a_child_prints_is_returned(children):
    assert children.python("one", "-c", "print('said')", timeout=60) == "said\n"


def test_another_exit_code_is_an_error_with_the_last_line(children):
    with pytest.raises(ChildError, match=r"ended with 3: why$"):
        children.python("one", "-c", "import sys; print('why'); sys.exit(3)", timeout=60)


def test_a_child_that_takes_too_long_ends_with_all_it_started(children):
    with pytest.raises(ChildError, match="did not end within 3 s"):
        children.python("one", "-c", f"{SLEEPER}; time.sleep(600)", timeout=3)
    assert of_this_test() == []


def test_an_interrupt_ends_all_and_starts_no_other(children):
    running = threading.Thread(target=lambda: pytest.raises(ChildError, _sleep, children))
    running.start()
    deadline = time.monotonic() + 30
    while not of_this_test() and time.monotonic() < deadline:
        time.sleep(0.05)
    children.end()
    running.join(30)
    assert of_this_test() == []
    with pytest.raises(ChildError, match="interrupted"):
        _sleep(children)


def test_a_child_that_is_to_be_alone_has_no_other_beside_it(children):
    spans = {}

    def run(name: str, alone: bool) -> None:
        said = children.python(
            name, "-c", "import time; a = time.time(); time.sleep(0.5); print(a, time.time())", timeout=60, alone=alone
        )
        spans[name] = tuple(map(float, said.split()))

    threads = [threading.Thread(target=run, args=(str(number), number == 1)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    start, end = spans.pop("1")
    assert all(ended <= start or begun >= end for begun, ended in spans.values())


@pytest.mark.parametrize(
    "said, cause",
    [
        ("error: no such model\n", "error: no such model"),
        (
            "[rank0]: RuntimeError: gone\ntorch.distributed.elastic.ChildFailedError:\n===\n",
            "[rank0]: RuntimeError: gone",
        ),
        ("Traceback (most recent call last):\n  File 'x'\nKeyError: 'loss'\n", "KeyError: 'loss'"),
        ("a line\n", "a line"),
        ("", "it printed nothing"),
    ],
)
def test_the_cause_is_found_in_what_was_printed(said, cause):
    assert last_error(said) == cause


def _sleep(children: Children) -> None:
    children.python("sleeper", "-c", "import time; time.sleep(600)", timeout=600)
