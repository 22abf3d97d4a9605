"""A child process ends with whoever started it, and takes its own children along."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from megatron_gopd.servers.process import ServerProcess
from tests.servers.real_server import wait_for

GRANDCHILD = (
    "import subprocess, sys, time\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "print(child.pid, flush=True)\n"
)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def grandchild(log: Path) -> int:
    wait_for(lambda: log.exists() and log.read_text().endswith("\n"), 120)
    return int(log.read_text().split()[-1])


@pytest.mark.parametrize("ending", ["time.sleep(600)", "sys.exit(3)"], ids=["running", "dead leader"])
def test_stop_ends_every_process(tmp_path, ending):
    process = ServerProcess([sys.executable, "-c", GRANDCHILD + ending], os.environ, tmp_path / "log")
    pid = grandchild(tmp_path / "log")
    process.stop()
    wait_for(lambda: gone(pid), 60)


def test_a_starter_that_is_killed_takes_the_server_along(tmp_path):
    starter = (
        "import os, sys, time\nfrom pathlib import Path\nfrom megatron_gopd.servers.process import ServerProcess\n"
        f"command = [sys.executable, '-c', {GRANDCHILD + 'time.sleep(600)'!r}]\n"
        f"ServerProcess(command, os.environ, Path({str(tmp_path / 'log')!r}))\n"
        "time.sleep(600)\n"
    )
    started = subprocess.Popen([sys.executable, "-c", starter])
    pid = grandchild(tmp_path / "log")
    started.send_signal(signal.SIGKILL)
    started.wait()
    wait_for(lambda: gone(pid), 60)


def test_the_end_of_the_log_is_shown(tmp_path):
    process = ServerProcess(
        [sys.executable, "-c", "print('no such model'); raise SystemExit(4)"], os.environ, tmp_path / "log"
    )
    wait_for(lambda: process.exit_code is not None, 120)
    assert process.exit_code == 4
    assert process.last_words().endswith("no such model")
    process.stop()
