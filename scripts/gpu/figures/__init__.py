"""What bench-gpu measures, a part a module: the name of a part -> its cases, which run one after the other."""

from __future__ import annotations

from collections.abc import Callable

from scripts.gpu.checks.bench import Bench
from scripts.gpu.checks.cases import Case
from scripts.gpu.figures import decoding, kernel, trainer

PARTS: dict[str, Callable[[Bench], list[Case]]] = {
    "kernel": kernel.cases,
    "trainer": trainer.cases,
    "decoding": decoding.cases,
}
