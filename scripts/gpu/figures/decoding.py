"""A decode step of the embedded engine: replayed, as a GPU does, and launched operation by operation."""

from __future__ import annotations

from scripts.gpu.checks.bench import Bench
from scripts.gpu.checks.cases import Case
from scripts.gpu.checks.result import Check

STEP_MS, ROWS = 8.0, 64
EQUAL, NATS = 0.98, 1e-4  # a token near the edge of two may fall either way, and its response goes on from there


def cases(bench: Bench) -> list[Case]:
    return [Case("decoding", "steps", lambda: steps(bench))]


def steps(bench: Bench) -> list[Check]:
    """Of a 0.6B model; on a CPU of a tiny one, in float32."""
    rows, dtype = (ROWS, "bfloat16") if bench.gpu else (8, "float32")
    models = bench.model("large-student"), bench.model("student")
    found = bench.program("decoding_times", *models, dtype, str(rows), name="decoding", alone=True)
    return [
        agreement(found["agreement"]),
        *(check for each in (rows, rows // 2) for check in of_rows(bench, each, found)),
    ]


def agreement(found: dict) -> Check:
    """Judged without a GPU too, where nothing is captured."""
    figure = f"{found['equal']:.1%} of the tokens, {found['nats']:.1e} nats apart"
    holds = found["equal"] >= EQUAL and found["nats"] <= NATS
    return Check("replayed and launched steps draw the same, float32", figure, f">= {EQUAL:.0%}, <= {NATS:g}", holds)


def of_rows(bench: Bench, rows: int, found: dict) -> list[Check]:
    mine, judged = found[str(rows)], bench.gpu and rows == ROWS
    checks = []
    for way, bound in (("replayed", STEP_MS), ("launched", None)):
        ms = 1000 * mine[way]["step_s"]
        figure = f"{ms:.1f} ms, {1000 * rows / ms:.0f} tokens/s"
        if way == "replayed":
            figure += f", {mine['launches']} operations; {mine[way]['first_s']:.1f} s to capture"
        asked = judged and bound is not None
        told = f"<= {bound:g} ms" if asked else ""
        checks.append(Check(f"a step of {rows} rows, {way}", figure, told, ms <= bound if asked else None))
    return checks
