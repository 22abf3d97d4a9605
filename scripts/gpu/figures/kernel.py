"""The LM-head kernel beside its peers."""

from __future__ import annotations

from scripts.gpu.checks.bench import Bench
from scripts.gpu.checks.cases import Case
from scripts.gpu.checks.result import Check

MB = 2**20
# (pass, who): time over one bare GEMM, extra MB with the whole vocabulary; of an H100
BOUNDS = {
    ("forward", "ours"): (1.10, None),
    ("both", "ours, into main_grad"): (3.3, 1536),
    ("both", "ours, recompute"): (4.3, 300),
}
JUDGED = (90, 100)  # compute capabilities


def cases(bench: Bench) -> list[Case]:
    return [Case("kernel", "times", lambda: times(bench))]


def times(bench: Bench) -> list[Check]:
    found = bench.program("kernel_times", bench.device, name="kernel", alone=True)
    judged = bench.gpu and bench.facts["gpu"]["capability"] in JUDGED
    gemms = [
        Check(f"{shape} one GEMM", f"{flops / 1e12:.3g} TFLOP/s", "", None)
        for shape, flops in found["gemm_flops"].items()
    ]
    return gemms + [check(row, judged) for row in found["rows"]]


def check(row: list, judged: bool) -> Check:
    """A figure with a bound holds or not; one without, and whoever is not here, is told."""
    shape, what, who, ratio, extra = row
    name, ours = f"{shape} {what}: {who}", who.startswith("ours")
    if isinstance(ratio, str):
        return Check(name, ratio, "runs" if ours else "", False if ours else None)
    figure = f"{ratio:.2f} x" + ("" if extra is None else f", {extra:.0f} MB")
    bound, room = BOUNDS.get((what, who), (None, None))
    if bound is None or not judged:
        return Check(name, figure, "", None)
    told = f"<= {bound:g} x" + ("" if room is None else f", {room} MB")
    return Check(name, figure, told, ratio <= bound and (room is None or extra <= room))
