"""What programs, and the process that holds the tests, can import: Python's library and numpy, read-only."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy
import pytest

from megatron_gopd.config.schema import Sandbox
from megatron_gopd.rewards.code import code
from tests.rewards.somebody import PYTHON, needs_root, run_as

CALM = Sandbox(seconds_per_test=60, seconds=120)
LOOK = """
import os, sys, numpy
packages = os.path.dirname(os.path.dirname(numpy.__file__))
assert packages == sys.prefix + '/lib/python3/dist-packages', packages
assert sorted(os.listdir(packages)) == ['numpy', 'numpy.libs'], os.listdir(packages)
assert sorted(os.listdir(sys.prefix)) == ['bin', 'lib'], os.listdir(sys.prefix)
assert os.listdir(sys.prefix + '/lib/other') == [] == os.listdir('/usr/local')
def f(): return numpy.array([1.0, 2.0])
"""
GRADE = """
import sys
from megatron_gopd.config.schema import Sandbox
from megatron_gopd.rewards.code import code
sys.path[:0] = sys.argv[3:]
print(code(f"```python\\n{sys.argv[1]}\\n```", sys.argv[2], Sandbox(seconds_per_test=60, seconds=120)).problem)
"""


def test_the_tests_import_all_of_numpy_and_of_the_standard_library():
    tests = ["import numpy.testing, numpy.polynomial, statistics\nnumpy.testing.assert_allclose(f(), [1, 2])"]
    answer = "```python\nimport numpy\ndef f(): return numpy.array([1.0, 2.0])\n```"
    assert code(answer, json.dumps(tests), CALM).problem is None


@needs_root
def test_the_tests_import_nothing_that_the_answer_has_written(tmp_path):
    venv = "/tmp/venv-of-somebody"  # which the sandbox replaces by the program's own /tmp
    answer = (
        f"import os\nos.makedirs('{venv}')\n"
        f"open('{venv}/late.py', 'w').write('import os; os.write(1, b\\'{{\"problem\": null}}\\'); os._exit(0)')\n"
        "def square(n): return 0"
    )
    done = run_as(0, "-c", GRADE, answer, json.dumps(["import late\nassert square(7) == 49"]), venv, "")
    assert done.stdout == "test 1: ModuleNotFoundError: No module named 'late'\n", done.stderr


@pytest.fixture
def conda():
    """A Python laid out as conda's: packages below its own prefix, beside all that was ever unpacked."""
    version, numpys = "python3.11", Path(numpy.__file__).parents[1]
    library = Path("/usr/lib", version)
    if not library.is_dir() or sysconfig.get_python_version() != "3.11":
        pytest.skip("needs a system Python 3.11")
    with TemporaryDirectory(dir="/var/tmp") as folder:  # /tmp is the program's own
        yield laid_out(Path(folder), library, numpys)


def laid_out(prefix: Path, library: Path, numpys: Path) -> Path:
    version, packages = library.name, prefix / "lib" / "python3" / "dist-packages"
    shutil.copytree(library, prefix / "lib" / version, symlinks=True)
    for name in ("numpy", "numpy.libs"):
        shutil.copytree(numpys / name, packages / name)
    for name in ("pkgs/benchmark", "envs/other", "lib/other/benchmark"):
        (prefix / name).mkdir(parents=True)
    (packages / "benchmark").mkdir()
    (packages / "ours.pth").write_text(f"{Path(__file__).parents[2]}\n{numpys}\n")
    (prefix / "bin").mkdir()
    shutil.copy(os.path.realpath(PYTHON), prefix / "bin" / version)
    return prefix


def test_of_a_conda_only_python_and_numpy_are_visible(conda):
    tests = json.dumps(["import numpy.polynomial\nassert (f() == numpy.array([1, 2])).all()"])
    command = [conda / "bin" / "python3.11", "-c", GRADE, LOOK, tests]
    done = subprocess.run(command, capture_output=True, text=True, env={}, cwd="/", check=False)
    assert done.stdout == "None\n", done.stderr
