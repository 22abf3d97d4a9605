"""The study in miniature: every stage once, two at a time; what is there already is not made again.

    python examples/miniature/run.py            # from nothing (make miniature)
    python examples/miniature/run.py --quick    # from the shipped base and teachers, one seed
    python examples/miniature/run.py --exact    # from these: the exact gradient beside the sampled one, three seeds

Every training stage is an ordinary run, runs/miniature/NAME (--quick: runs/miniature-quick/NAME; --exact:
runs/miniature-exact/NAME), of a YAML file beside this one: it can be started, stopped and continued by `megatron-gopd
train` as well. What they print is in the folder `output` beside them.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: two threads of one process are slower than two processes
sys.path.insert(0, str(Path(__file__).parent))

import typer
from exact_outcome import report_gradients
from exact_stages import exact
from outcome import report_outcome
from perform import perform
from stages import DATA, Stage, full, quick

from megatron_gopd.errors import UserError


def run(stages: list[Stage], workers: int) -> None:
    """Perform every stage after those it needs. The first failure ends the study; the same call goes on from there."""
    done = {stage.name for stage in stages if stage.done}
    left = [stage for stage in stages if stage.name not in done]
    under_way: dict[Future, tuple[Stage, float]] = {}
    print(f"{len(done)} of {len(stages)} stages are there; what the others print: {stages[0].runs}/output", flush=True)
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        while left or under_way:
            ready = [stage for stage in left if done.issuperset(stage.needs)][: workers - len(under_way)]
            for stage in ready:
                left.remove(stage)
                under_way[pool.submit(perform, stage)] = stage, time.monotonic()
            finished, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in finished:
                stage, begun = under_way.pop(future)
                future.result()
                done.add(stage.name)
                print(f"[{len(done)}/{len(stages)}] {stage.name}: {time.monotonic() - begun:.0f} s", flush=True)


def main(
    quickly: Annotated[bool, typer.Option("--quick", help="from the shipped models, one seed")] = False,
    exactly: Annotated[bool, typer.Option("--exact", help="from the shipped models, both gradients")] = False,
    workers: Annotated[int, typer.Option(min=1, help="processes, of one core each")] = 2,
) -> None:
    """Run what is missing of the study, and report on it."""
    begun = time.monotonic()
    if quickly and exactly:
        raise UserError("--quick and --exact are two studies; ask for one after the other")
    if not (DATA / "corpus.jsonl").exists():
        raise UserError(f"{DATA} lacks the prompts; make miniature writes them (examples/miniature/tasks.py)")
    stages = exact() if exactly else quick() if quickly else full()
    try:
        run(stages, workers)
    except SystemExit:
        raise UserError("a stage failed, as said above; mend that, and the same command goes on from it") from None
    holds = (report_gradients if exactly else report_outcome)(stages, time.monotonic() - begun)
    raise typer.Exit(0 if holds else 1)


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
