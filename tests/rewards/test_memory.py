"""Memory of every kind counts, and what processes share counts once."""

from __future__ import annotations

import json

import pytest

from megatron_gopd.config.schema import Sandbox
from megatron_gopd.rewards.code import code
from megatron_gopd.rewards.sandbox import memory_cgroup, programs
from tests.rewards.somebody import UID, grades_by, needs_root

SETTINGS = {"seconds_per_test": 60, "seconds": 120, "memory_mb": 192, "scratch_mb": 128, "processes": 32, "workers": 2}
TESTS = json.dumps({"inputs": [""], "outputs": ["done"]})
STAY = "import time\ntime.sleep(60)\n"
FORK = "for _ in range(24):\n    if not os.fork(): break\n"
TOO_MUCH = {
    "its own, in several": f"{FORK.replace('24', '3')}held = bytearray(100 << 20)\nheld[::4096] = b'x' * 25600\n",
    "of threads that outlive the first": f"{FORK.replace('24', '4')}import ctypes, threading, time\ndef hold():\n"
    "    held = bytearray(50 << 20)\n    held[::4096] = b'x' * 12800\n    time.sleep(60)\n"
    "threading.Thread(target=hold).start()\nctypes.CDLL(None).pthread_exit(None)\n",
    "files": "for folder in ('/tmp', '/dev/shm'): os.posix_fallocate(os.open(f'{folder}/x', 66), 0, 110 << 20)\n",
    "files without names": "for folder in ('/tmp', '/dev/shm'):\n"
    "    os.posix_fallocate(os.open(folder, os.O_TMPFILE | 2), 0, 110 << 20)\n",
    "sockets": f"{FORK}import socket\nheld = [socket.socketpair() for _ in range(28)]\n",
    "locks": "import fcntl, struct\nfile = os.open('/tmp/x', 66)\n"
    "for n in range(1000): fcntl.fcntl(file, fcntl.F_SETLK, struct.pack('hhqqi', 1, 0, 2 * n, 1, 0))\n",
}
ENOUGH = {
    "shared by forks": f"held = b'x' * (120 << 20)\n{FORK}"
    "else:\n    for _ in range(24): os.wait()\n    os.write(1, b'done')\n    os._exit(0)\n"
    "import time\ntime.sleep(2)\nos._exit(0)",
    "of a child on its way to another program": "held = b'x' * (120 << 20)\nimport subprocess\n"
    "for _ in range(20): subprocess.run(['true'])\nprint('done')\n",
    "of a few pipes, sockets and locks": "import socket, sqlite3, time\nheld = [os.pipe(), socket.socketpair()]\n"
    "base = sqlite3.connect('/tmp/x.db')\nbase.execute('create table t (a)')\nbase.commit()\ntime.sleep(1)\n"
    "print('done')\n",
}


@needs_root
@pytest.mark.parametrize("user", [0, UID])
def test_memory_of_every_kind_counts_and_what_is_shared_counts_once(user):
    programs = [f"{body}{STAY}" for body in TOO_MUCH.values()] + list(ENOUGH.values())
    answers = [f"```python\nimport os\n{program}\n```" for program in programs]
    problems = [problem for _, problem in grades_by(user, answers, [TESTS] * len(answers), **SETTINGS)]
    expected = dict.fromkeys(TOO_MUCH, "test 1: too much memory") | dict.fromkeys(ENOUGH)
    assert dict(zip(expected, problems, strict=True)) == expected


@pytest.mark.skipif(memory_cgroup.place() is None, reason="this user may make no memory cgroup")
def test_where_there_is_a_memory_cgroup_programs_are_in_it():
    before = memory_cgroup.kills()
    program = "print('done' if 'megatron-gopd-' in open('/proc/self/cgroup').read() else 'outside')"
    assert code(f"```python\n{program}\n```", TESTS, Sandbox(seconds_per_test=60)).problem is None
    assert memory_cgroup.kills() == before


@pytest.mark.skipif(memory_cgroup.place() is None, reason="this user may make no memory cgroup")
def test_too_much_memory_is_the_answers_fault_whomever_the_kernel_ends(monkeypatch):
    monkeypatch.setattr(programs, "HEAVY_LOOKS", 1 << 30)
    weight = bytearray(b"x" * (500 << 20))  # of this process, and so of the referee that it forks: the largest goes
    program = f"import os\n{TOO_MUCH['files']}held = b'x' * (150 << 20)\n{STAY}"
    assert code(f"```python\n{program}\n```", TESTS, Sandbox(**SETTINGS)).problem == "too much memory"
    del weight


@pytest.mark.parametrize(
    ("files", "shares", "chosen"),
    [
        ("memory.max cgroup.controllers", {"job": "memory pids", "job/step": ""}, "job"),
        ("memory.max cgroup.controllers", {"job": "memory", "job/step": "cpu memory"}, "job/step"),
        ("memory.max cgroup.controllers", {"job": "cpu", "job/step": ""}, None),
        ("memory.limit_in_bytes", {"job": None, "job/step": None}, "job/step"),
    ],
)
def test_a_group_is_made_where_its_version_allows_a_limit(tmp_path, monkeypatch, files, shares, chosen):
    for path, shared in shares.items():
        (tmp_path / path).mkdir(parents=True)
        for name in [*files.split(), "cgroup.procs"]:
            (tmp_path / path / name).touch()
        if shared is not None:
            (tmp_path / path / "cgroup.subtree_control").write_text(shared)
    monkeypatch.setattr(memory_cgroup.cgroups, "folder", lambda _: (tmp_path / "job/step", tmp_path))
    assert memory_cgroup.place.__wrapped__() == (tmp_path / chosen if chosen else None)
