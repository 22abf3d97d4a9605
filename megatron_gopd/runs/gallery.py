"""Kept trajectories in a few words, for programs that show tables and text."""

from __future__ import annotations

from typing import Any

LONGEST = 4000  # characters of a text, in a table that is loaded whole


def summary(row: dict[str, Any]) -> dict[str, Any]:
    """{column: cell}: who, what and how good; per-token values as means, nats."""
    return {
        **{name: row[name] for name in ("step", "teacher", "kept_as", "id")},
        **{name: cut(row[name]) for name in ("prompt", "response")},
        "reward": row["reward"],
        "finish_reason": row["finish_reason"],
        "tokens": len(row["response_tokens"]),
        "advantage_mean": _mean(row.get("advantage")),
        "reverse_kl": None if row["advantage_of_teacher"] is None else -_mean(row["advantage_of_teacher"]),
        "entropy": _mean(row["entropy"]),
    }


def text_of(row: dict[str, Any]) -> str:
    """Markdown: figures, then prompt and response as code, in which nothing is markup."""
    figures = {name: cell for name, cell in summary(row).items() if name not in ("prompt", "response")}
    told = ", ".join(f"{name} {_shown(cell)}" for name, cell in figures.items() if cell is not None)
    return "\n\n".join([_code(told), _code(cut(row["prompt"])), _code(cut(row["response"]))])


def cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ... and {len(text) - LONGEST} characters more"


def _code(text: str) -> str:
    """An indented block cannot be ended by what is in it, unlike a fenced one."""
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])


def _mean(values) -> float | None:
    return None if values is None or not len(values) else float(values.mean())


def _shown(cell: object) -> str:
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
