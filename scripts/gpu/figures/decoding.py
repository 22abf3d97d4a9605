"""A decode step of the embedded engine."""

from __future__ import annotations

from scripts.gpu.checks.bench import Bench
from scripts.gpu.checks.cases import Case
from scripts.gpu.checks.result import Check

STEP_MS, ROWS = 8.0, 64


def cases(bench: Bench) -> list[Case]:
    return [Case("decoding", "a step", lambda: step(bench))]


def step(bench: Bench) -> Check:
    """Of a 0.6B model; on a CPU of a tiny one, in float32."""
    rows, dtype = (ROWS, "bfloat16") if bench.gpu else (4, "float32")
    model = bench.model("large-student")
    found = bench.program("decoding_times", model, dtype, str(rows), name="decoding", alone=True)
    ms = 1000 * found["step_s"]
    figure = f"{ms:.1f} ms for {rows} rows, {rows / found['step_s']:.0f} tokens/s"
    return Check("a step", figure, f"<= {STEP_MS:g} ms" if bench.gpu else "", ms <= STEP_MS if bench.gpu else None)
