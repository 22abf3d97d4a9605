"""The recipes of images, read as their builders read them: neither can be built where the tests run."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
INSTRUCTIONS = {"ARG", "CMD", "COPY", "ENV", "FROM", "RUN", "WORKDIR"}
HOME = "/opt/megatron_gopd"
SECTIONS = {"files", "post", "environment", "runscript", "help"}


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, lines that go on joined."""
    text = re.sub(r"^#.*\n", "", (DOCKER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = filter(None, map(str.strip, re.sub(r"\\\n\s*", "", text).splitlines()))
    return [tuple(line.split(maxsplit=1)) for line in lines]


def sections() -> dict[str, str]:
    """{name: body} of Apptainer's recipe; "" the header."""
    text = re.sub(r"^#.*\n", "", (DOCKER / "megatron-gopd.def").read_text(), flags=re.MULTILINE)
    header, *rest = re.split(r"^%(\w+)\n", text, flags=re.MULTILINE)
    return {"": header} | dict(zip(rest[::2], rest[1::2], strict=True))


def copied() -> dict[str, str]:
    """{path in the repository: path in the image} of the Dockerfile."""
    found = {}
    for sources, target in (arguments.rsplit(maxsplit=1) for name, arguments in instructions() if name == "COPY"):
        for source in sources.split():
            inside = f"{target.removeprefix('./')}{Path(source).name}" if target.endswith("/") else target
            found[source] = f"{HOME}/{inside}"
    return found


def test_every_line_of_the_dockerfile_is_an_instruction():
    assert {name for name, _ in instructions()} == INSTRUCTIONS
    [command] = [arguments for name, arguments in instructions() if name == "CMD"]
    assert json.loads(command) == ["megatron-gopd", "--help"]


def test_the_base_is_the_users_choice():
    assert instructions()[:2] == [("ARG", "BASE"), ("FROM", "${BASE}")]
    header = dict(line.split(": ") for line in sections()[""].splitlines() if line)
    assert header == {"Bootstrap": "docker", "From": "{{ BASE }}"}


def test_apptainers_sections_are_those_it_knows():
    assert sections().keys() == {"", *SECTIONS}


def test_both_recipes_hold_the_same_files_which_are_here():
    here = dict(line.split() for line in sections()["files"].splitlines() if line)
    assert {source: target for source, target in copied().items() if source != "megatron_gopd/__init__.py"} == here
    for source in copied():
        assert (ROOT / source).exists(), source


def test_what_is_copied_is_sent_to_the_builder():
    """The last rule that matches a path, or a folder above it, decides."""
    rules = [line for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] not in "#"]
    for source in copied():
        above = [source, *(str(parent) for parent in Path(source).parents if str(parent) != ".")]
        verdicts = [rule for rule in rules if any(fnmatch.fnmatch(path, rule.removeprefix("!")) for path in above)]
        assert verdicts[-1].startswith("!"), source


@pytest.mark.parametrize("needed", ["setup.py", "README.md", "constraints-gpu.txt", "constraints-cpu.txt"])
def test_the_environment_is_made_before_the_package_is_copied(needed):
    """And of the files that setup.py and the scripts read."""
    order = [f"{name} {arguments}" for name, arguments in instructions()]
    made = next(number for number, line in enumerate(order) if line.endswith("docker/install.sh") and "RUN" in line)
    assert order.index("COPY megatron_gopd megatron_gopd") > made
    assert any(needed in line for line in order[:made])
    assert needed in (ROOT / "setup.py").read_text() + (ROOT / "scripts/install/base.sh").read_text()


def test_both_install_by_one_script_with_the_pins():
    assert f"{HOME}/docker/install.sh" in sections()["post"]
    script = (DOCKER / "install.sh").read_text()
    assert "DEVICE=gpu scripts/install/base.sh\n" in script
    assert "==" not in script + (DOCKER / "Dockerfile").read_text() + (DOCKER / "megatron-gopd.def").read_text()
    shells = {"install.sh": script, **{name: sections()[name] for name in ("post", "environment", "runscript")}}
    for name, text in shells.items():
        done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), name
