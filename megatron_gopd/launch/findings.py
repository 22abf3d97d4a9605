"""What a pre-flight found, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

from megatron_gopd.errors import UserError
from megatron_gopd.srun import this_node

Verdict = tuple[str, str, str]  # verdict, text, mend: see Finding
MARKS = {"ok": "ok  ", "warning": "WARN", "failed": "FAIL"}


@dataclass(frozen=True)
class Finding:
    """One check on one node: `verdict` is ok, warning or failed; `mend` says what to do about the last two."""

    node: str
    check: str
    verdict: str
    text: str
    mend: str = ""


def verdict(check: str, look: Callable[[], Verdict]) -> Finding:
    """What `look` finds on this node; an error that the user can mend is a check that failed."""
    try:
        found, text, mend = look()
    except (UserError, OSError) as error:  # the other nodes wait for what this one finds
        found, text, mend = "failed", str(error), ""
    return Finding(this_node(), check, found, text, mend)


def report(findings: list[Finding]) -> str:
    """A line a check, equal ones of several nodes together, what to do below those that are not ok."""
    together: dict[tuple, list[str]] = {}
    for found in findings:
        together.setdefault((found.check, found.verdict, found.text, found.mend), []).append(found.node)
    lines = []
    for (check, verdict, text, mend), nodes in together.items():
        lines.append(f"{MARKS[verdict]} {check:<11} {','.join(nodes)}: {text}")
        if mend:
            lines.append(f"     {'':<11} -> {mend}")
    return "\n".join(lines)


def as_json(findings: list[Finding]) -> str:
    return json.dumps({"ok": not failed(findings), "findings": [asdict(found) for found in findings]}, indent=1)


def failed(findings: list[Finding]) -> list[Finding]:
    return [found for found in findings if found.verdict == "failed"]


def bad_nodes(findings: list[Finding]) -> list[str]:
    """The nodes that fail a check which others pass: theirs is the fault. A check that all fail is no node's."""
    nodes = {found.node for found in findings}
    by_check: dict[str, set[str]] = {}
    for found in failed(findings):
        by_check.setdefault(found.check, set()).add(found.node)
    return sorted(set().union(*(failing for failing in by_check.values() if failing < nodes)))
