"""Names that files import from each other are there: benchmarks and examples run by hand, where nobody notices."""

from __future__ import annotations

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("megatron_gopd", "scripts", "tests", "examples")


def file_of(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()), None)


@functools.cache
def names_in(file: Path) -> set[str]:
    """Those that a module binds, anywhere."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {each.asname or each.name.partition(".")[0] for each in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def missing(file: Path) -> list[str]:
    """MODULE.NAME of what the file imports of ours, and is not there."""
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or node.level or node.module.partition(".")[0] not in ROOMS:
            continue
        there, folder = file_of(node.module), ROOT.joinpath(*node.module.split("."))
        names = names_in(there) if there else set()
        for name in (each.name for each in node.names):
            if name not in names and not file_of(f"{node.module}.{name}") and not (folder / name).is_dir():
                found.append(f"{node.module}.{name}")
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_what_is_imported_is_there(room):
    lacking = {str(file.relative_to(ROOT)): missing(file) for file in (ROOT / room).rglob("*.py")}
    assert {file: names for file, names in lacking.items() if names} == {}


def test_a_name_that_has_moved_is_found(tmp_path):
    file = tmp_path / "bench.py"
    file.write_text("def main():\n    from megatron_gopd.rollout.sglang import PLAIN, SGLangEngine\n")
    assert missing(file) == ["megatron_gopd.rollout.sglang.PLAIN"]
