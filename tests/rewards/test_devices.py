"""What a program finds under /dev, and that the memory it can take there is bounded."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from megatron_gopd.config.schema import Sandbox
from megatron_gopd.rewards.code import code

CALM = Sandbox(seconds_per_test=60, seconds=120)  # a busy machine is no reason to fail
SQUARE = json.dumps({"inputs": ["7\n", "12\n"], "outputs": ["49\n", "144\n"]})
FILES = {
    "stdin": "print(int(open('/dev/stdin').read()) ** 2)",
    "stdin twice": "import sys\nsys.stdin.read()\nprint(int(open('/dev/stdin').read()) ** 2)",
    "descriptors": "print(int(open('/dev/fd/0').read()) ** 2)",
    "stdout": "n = int(input())\nwith open('/dev/stdout', 'w') as out: print(n ** 2, file=out)",
    "stderr": "with open('/dev/stderr', 'w') as out: print('x', file=out)\nprint(int(input()) ** 2)",
}
SHARED = {
    "semaphores": "import multiprocessing\nwith multiprocessing.Lock(): print(int(input()) ** 2)",
    "processes": "from multiprocessing import Pool\ndef square(n): return n * n\n"
    "if __name__ == '__main__':\n    with Pool(2) as pool: print(*pool.map(square, [int(input())]))",
    "memory": "from multiprocessing import shared_memory\n"
    "block = shared_memory.SharedMemory(create=True, size=8)\nblock.buf[0] = int(input())\n"
    "other = shared_memory.SharedMemory(block.name)\nprint(other.buf[0] ** 2)\n"
    "other.close()\nblock.close()\nblock.unlink()",
    "emptied": "import os\nassert not os.listdir('/dev/shm')\nopen('/dev/shm/x', 'w')\nprint(int(input()) ** 2)",
}
FILL = "def fill(n):\n    for _ in range(n): open('/dev/shm/x', 'ab').write(bytes(1 << 20))\n"
AS_SOMEBODY = """
import sys, json
from megatron_gopd.config.schema import Sandbox
from megatron_gopd.rewards.code import code
for program in json.loads(sys.argv[1]):
    sandbox = Sandbox(seconds_per_test=60, seconds=120, isolation=sys.argv[3])
    print(code(f"```python\\n{program}\\n```", sys.argv[2], sandbox).problem, flush=True)
"""


def problem(program: str, sandbox: Sandbox = CALM) -> str | None:
    return code(f"```python\n{program}\n```", SQUARE, sandbox).problem


@pytest.mark.parametrize("name", FILES)
def test_a_program_opens_its_standard_streams_by_name(name):
    assert problem(FILES[name]) is None


@pytest.mark.parametrize("name", SHARED)
def test_processes_of_a_program_share_memory_that_is_gone_with_it(name):
    assert problem(SHARED[name]) is None


def test_a_function_of_an_answer_may_use_processes():
    program = "from multiprocessing import Pool\ndef f(items):\n    with Pool(2) as pool: return pool.map(abs, items)"
    assert code(f"```python\n{program}\n```", json.dumps(["assert f([-4, 9]) == [4, 9]"]), CALM).problem is None


@pytest.mark.skipif(os.getuid() != 0 or not Path("/usr/bin/python3").exists(), reason="needs root and a system Python")
@pytest.mark.parametrize("user", [0, 4321])
@pytest.mark.parametrize("isolation", ["namespaces", "limits"])
def test_the_devices_are_there_whoever_grades_and_however(user, isolation):
    programs = [*FILES.values(), *(SHARED.values() if isolation == "namespaces" else ())]
    command = ["/usr/bin/python3", "-c", AS_SOMEBODY, json.dumps(programs), SQUARE, isolation]
    path = {"PYTHONPATH": f"{Path(__file__).parents[2]}:{Path(pytest.__file__).parents[1]}"}
    somebody = {"user": user, "group": user, "extra_groups": []}
    done = subprocess.run(command, capture_output=True, text=True, env=path, cwd="/", check=False, **somebody)
    assert done.stdout.splitlines() == ["None"] * len(programs), done.stderr


def test_shared_memory_is_bounded_as_scratch_is():
    small = CALM.model_copy(update={"scratch_mb": 4})
    assert problem(f"{FILL}fill(3)\nprint(int(input()) ** 2)", small) is None
    assert "No space left on device" in problem(
        f"import os\nopen('/dev/shm/y', 'wb').write(bytes(3 << 20))\n{FILL}fill(3)", small
    )


def test_shared_memory_counts_as_memory():
    sandbox = CALM.model_copy(update={"scratch_mb": 512, "memory_mb": 256})
    rest = "import time\nmine = bytearray(b'x' * (100 << 20))\ntime.sleep({})\nprint(int(input()) ** 2)"
    assert problem(f"{FILL}fill(10)\n{rest.format(0)}", sandbox) is None
    found = problem(f"{FILL}fill(200)\n{rest.format(20)}", sandbox)
    assert found.removeprefix("test 1: ") == "too much memory"  # without it where the kernel ended the referee


def test_the_devices_of_the_machine_keep_their_owner():
    before = os.stat("/dev/null")
    assert code("```python\ndef f(): return 1\n```", json.dumps(["assert f() == 1"]), CALM).problem is None
    assert (os.stat("/dev/null").st_uid, os.stat("/dev/null").st_mode) == (before.st_uid, before.st_mode)
