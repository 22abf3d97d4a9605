"""Which names of an answer its tests see: none takes the place of a builtin that the tests rely on."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable, Iterator

from megatron_gopd.rewards.tests import Assertions

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def names_for(tests: Assertions, defined: Iterable[str]) -> list[str]:
    """Of the names that an answer has defined, those that its tests see.

    A builtin's name is the answer's where it is the entry point; other builtins are Python's.
    """
    names = [name for name in map(str, defined) if not name.startswith("__")]
    if not any(hasattr(builtins, name) for name in names):
        return names
    entry = tests.entry or _entry(tests.blocks)
    return [name for name in names if name == entry or not hasattr(builtins, name)]


def _entry(blocks: Iterable[str]) -> str | None:
    """The builtin's name that tests like `assert sum(10, 15) == 6` of MBPP mean as the answer's.

    There is one only where the tests use no other name that is neither theirs nor Python's: the one called first,
    innermost, outside of their functions.
    """
    try:
        trees = [ast.parse(block) for block in blocks]
    except (SyntaxError, ValueError, RecursionError):  # which the test itself will say
        return None
    nodes = [node for tree in trees for node in ast.walk(tree)]
    used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    own = {name for node in nodes for name in _bound(node)}
    if not all(hasattr(builtins, name) for name in used - own):
        return None
    calls = (name for tree in trees for name in _called(tree) if name not in own)
    return next(calls, None)


def _bound(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        yield node.id
    elif isinstance(node, (*_SCOPES, ast.ExceptHandler)):
        yield node.name or ""
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.alias):
        yield (node.asname or node.name).split(".")[0]


def _called(node: ast.AST, *, checked: bool = False) -> Iterator[str]:
    """Names that assertions, and calls whose value nobody takes, call: inner ones first."""
    if isinstance(node, _SCOPES):
        return
    checked = checked or isinstance(node, ast.Assert | ast.Expr)
    for child in ast.iter_child_nodes(node):
        yield from _called(child, checked=checked)
    if checked and isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        yield node.func.id
