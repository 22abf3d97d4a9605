"""The sections of gpu-check by name: each gives its cases."""

from __future__ import annotations

from scripts.gpu.sections import fp8, kernel, loop, moe, ranks, resume, sglang

SECTIONS = {
    "kernel": kernel.cases,
    "loop": loop.cases,
    "fp8": fp8.cases,
    "moe": moe.cases,
    "ranks": ranks.cases,
    "resume": resume.cases,
    "sglang": sglang.cases,
}
