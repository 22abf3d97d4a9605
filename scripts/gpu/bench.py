"""make bench-gpu: the LM-head kernel beside its peers, updates and scoring, decoding; on this GPU.

    python scripts/gpu/bench.py [--only kernel,trainer,decoding] [--device cpu] [--json FILE]

Prints `figure | bound | holds` of all that was measured, one after the other, and one line that sums up; writes the
same to FILE, and logs beside it. Exit code 0 when every bound that is judged here holds, 1 when one does not, 2 for a
mistake. Without a GPU the same code runs at tiny sizes, and nothing is judged.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from scripts.gpu.check import Mistake, chosen, facts, output  # noqa: E402
from scripts.gpu.checks.bench import Bench, environment  # noqa: E402
from scripts.gpu.checks.cases import run_all  # noqa: E402
from scripts.gpu.checks.children import Children  # noqa: E402
from scripts.gpu.checks.result import Check  # noqa: E402
from scripts.gpu.checks.table import counts, table, write_json  # noqa: E402
from scripts.gpu.figures import PARTS  # noqa: E402


def main(arguments: list[str]) -> int:
    asked = parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as an interrupt: the children end first
    start = time.monotonic()
    try:
        names, file = chosen(asked.only, PARTS), output(asked.json)
        checks, where = bench(names, file, asked.device)
    except Mistake as mistake:
        print(f"error: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(table(checks), f"\n{file}: written", summary(checks, where, time.monotonic() - start), sep="\n")
    return int(counts(checks)["fail"] > 0)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.py", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas: " + ",".join(PARTS))
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto", help="auto: a GPU if there is one")
    parser.add_argument("--json", type=Path, default=ROOT / "runs" / "bench-gpu" / "figures.json", metavar="FILE")
    return parser.parse_args(arguments)


def bench(names: list[str], file: Path, device: str) -> tuple[list[Check], str]:
    """The figures of the parts `names`, and on what; `file` is written anew whenever more are known. Raises Mistake."""
    gpu = device == "cuda" or (device == "auto" and _finds_a_gpu())
    children = Children(1, environment(ROOT, gpu), file.parent / "logs")
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        on = Bench(gpu, False, Path(folder), {}, children)
        on.facts = facts(on)
        where = on.facts["gpu"]["name"] if gpu else "no GPU, tiny sizes"

        def told(checks: list[Check]) -> None:
            write_json(file, checks, {"device": where, "machine": on.facts})
            print(f"{len(checks)} figures", file=sys.stderr, flush=True)

        return run_all([case for name in names for case in PARTS[name](on)], children, told), where


def _finds_a_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def summary(checks: Sequence[Check], where: str, seconds: float) -> str:
    found = counts(checks)
    missed = [check.name for check in checks if check.holds is False]
    told = f"{found['hold']} bounds hold, {found['fail']} missed" + (f" ({'; '.join(missed)})" if missed else "")
    return f"bench-gpu: {where}: {len(checks)} figures in {seconds:.0f} s, {told}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
