"""make gpu-check: what only a GPU shows, checked on this one with whatever is installed beside it.

    python scripts/gpu/check.py [--quick] [--only kernel,loop,fp8,moe,ranks,resume,sglang] [--device cpu] [--json FILE]

Prints `check | figure | bound | holds` and one line that sums up; writes the same to FILE, and logs beside it. Exit
code 0 when all that was not skipped holds, 1 when a check fails, 2 for a mistake. `--device cpu` runs the same code at
tiny sizes without a GPU.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.gpu.checks.bench import Bench, environment  # noqa: E402
from scripts.gpu.checks.cases import run_all  # noqa: E402
from scripts.gpu.checks.children import ChildError, Children  # noqa: E402
from scripts.gpu.checks.result import Check  # noqa: E402
from scripts.gpu.checks.table import counts, summary, table, write_json  # noqa: E402
from scripts.gpu.sections import SECTIONS  # noqa: E402

OLDEST = 80  # compute capability: bf16, and what the kernels are compiled for
CORES = {True: 2, False: 1}  # of a child, on a GPU and on a CPU
MOST = 6  # children at a time


class Mistake(Exception):
    """What the caller can mend; the message says how."""


def main(arguments: list[str]) -> int:
    asked = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an interrupt: the children end first
    try:
        names, file = chosen(asked.only, SECTIONS), output(asked.json)
        checks = check(names, file, gpu=asked.device == "cuda", quick=asked.quick)
    except Mistake as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(table(checks), f"\n{file}: written", summary(checks), sep="\n")
    return int(counts(checks)["fail"] > 0)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="check.py", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="half the time: fewer shapes, recipes and layouts")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, with commas: " + ",".join(SECTIONS))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tiny sizes, without a GPU")
    parser.add_argument("--json", type=Path, default=ROOT / "runs" / "gpu-check" / "checks.json", metavar="FILE")
    return parser.parse_args(arguments)


def chosen(only: str, sections: Collection[str]) -> list[str]:
    """Some of `sections`, in their own order. Raises Mistake: one is unknown."""
    asked = [name.strip() for name in only.split(",") if name.strip()]
    for name in asked:
        if name not in sections:
            raise Mistake(f"--only {name}: there is no such section; write some of {','.join(sections)}")
    if not asked:
        raise Mistake(f"--only names no section; write some of {','.join(sections)}")
    return [name for name in sections if name in asked]


def output(file: Path) -> Path:
    """Raises Mistake: it cannot be written there."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    except OSError as error:
        raise Mistake(f"--json {file}: {error.strerror}; name a file in a folder that can be written") from None
    return file.absolute()


def check(names: list[str], file: Path, *, gpu: bool, quick: bool) -> list[Check]:
    """The checks of the sections `names`; `file` is written anew whenever more of them are known. Raises Mistake."""
    start = time.monotonic()
    at_a_time = max(1, min(MOST, (os.cpu_count() or 1) // CORES[gpu]))
    children = Children(at_a_time, environment(ROOT, gpu), file.parent / "logs")
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        bench = Bench(gpu, quick, Path(folder), {}, children)
        bench.facts = facts(bench)
        about = {"device": bench.device, "quick": quick, "machine": bench.facts}

        def told(checks: list[Check]) -> None:
            write_json(file, checks, about | {"seconds": round(time.monotonic() - start)})
            print(f"{time.monotonic() - start:4.0f} s: {summary(checks)}", file=sys.stderr, flush=True)

        return run_all([case for name in names for case in SECTIONS[name](bench)], children, told)


def facts(bench: Bench) -> dict:
    """What the machine has. Raises Mistake: not enough."""
    try:
        found = bench.program("facts", name="facts")
    except ChildError as error:
        raise Mistake(f"this Python ({sys.executable}) does not run the project: {error}") from None
    if not bench.gpu:
        return found
    if found["gpu"] is None:
        raise Mistake("torch finds no NVIDIA GPU; run this on a machine with one, or with --device cpu")
    if found["gpu"]["capability"] < OLDEST:
        about = f"{found['gpu']['name']}, has {found['gpu']['capability'] / 10:.1f}"
        raise Mistake(f"bf16 needs compute capability 8.0 (A100) or newer, and this GPU, {about}; use another")
    if (found["te_problem"] or "").startswith("it does not import"):
        raise Mistake(f"Transformer Engine is installed, but {found['te_problem']}; build it anew, or remove it")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
