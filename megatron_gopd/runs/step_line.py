"""The line of a step: what a person watches, in 120 columns."""

from __future__ import annotations

from collections.abc import Sequence

SEPARATOR = " | "
MORE = "    "  # before a line that goes on


def step_line(step: int, steps: int, metrics: dict[str, float], eta_s: float | None = None) -> list[str]:
    """`step 3/12`, `loss 0.1234`, ...: its parts; one whose metric is not measured is left out."""
    length = _parts(metrics, ("response_tokens_mean", "len {}", _short), ("truncated_fraction", "({:.0%} cut)"))
    speed = _parts(metrics, ("timing/step_s", "{} s", _short), ("tokens_per_s", "{} tok/s", _short))
    parts = [
        f"step {step}/{steps}",
        *_parts(metrics, ("loss", "loss {:.4f}"), ("reverse_kl", "kl {:.3f}"), ("reward", "reward {:.3f}")),
        " ".join(length),
        *_parts(metrics, ("grad_norm", "grad {:.2f}")),
        ", ".join(speed),
        "" if eta_s is None else f"eta {duration(eta_s)}",
    ]
    return [part for part in parts if part]


def folded(parts: Sequence[str], width: int | None) -> str:
    """The parts in a line, or, from `width` columns on, in as few as they fit into; None: one line."""
    lines = [parts[0]]
    for part in parts[1:]:
        longer = f"{lines[-1]}{SEPARATOR}{part}"
        if width is None or len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(MORE + part)
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """45s, 12m30s, 3h05m, 2d04h."""
    whole = round(seconds)
    for unit, size, below, part in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // part:02d}{below}"
    return f"{whole}s"


def _parts(metrics: dict[str, float], *wanted: tuple) -> list[str]:
    """Of each (metric, form, how its value is written) that is measured."""
    return [
        form.format(*(write(metrics[name]) for write in (how or [float])))
        for name, form, *how in wanted
        if name in metrics
    ]


def _short(value: float) -> str:
    """At most four digits: 45.2, 4512, 25.7k."""
    if value >= 10_000:
        return f"{value / 1000:.1f}k" if value < 1_000_000 else f"{value / 1_000_000:.1f}M"
    return f"{value:.1f}" if value < 100 else f"{value:.0f}"
