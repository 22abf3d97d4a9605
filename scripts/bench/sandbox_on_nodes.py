"""make bench-sandbox ARGS=--nodes=2: how many answers a second several nodes grade, beside one of them.

On a real SLURM cluster of simulated nodes, one rank and one worker a node, in turns. All answers right, and 0.85 times
as many a second as there are nodes (1.7 on two), is what must hold. This machine needs a core for each node.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from megatron_gopd.config.schema import Sandbox  # noqa: E402
from megatron_gopd.data import Prompt, Trajectory  # noqa: E402
from scripts.bench.sandbox import human_eval, texts  # noqa: E402
from scripts.mini_slurm import MiniSlurm, install  # noqa: E402

SHARE = 0.85  # of what as many nodes could grade that had nothing to agree on
WAIT_S = 1800  # for one measurement: the machine may be busy


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        return bytes(tokens).decode()


def compare(nodes: int, times: int) -> bool:
    """Measure one node and `nodes` in turns, `times` times each; print the line that sums up. Returns: does it hold?"""
    install()
    seconds, right, asked = {1: 0.0, nodes: 0.0}, 0, 0
    with MiniSlurm(nodes, gpus=1) as cluster:
        for turn in range(times):
            for count in seconds:
                found = measured_on(cluster, count)
                seconds[count] += found["seconds"]
                right, asked = right + found["right"], asked + found["answers"]
                rate = found["answers"] / found["seconds"]
                print(f"turn {turn + 1}, {count} node(s): {rate:.1f} answers a second", flush=True)
    one, all_nodes = (asked / 2 / each for each in seconds.values())
    holds = right == asked and all_nodes >= SHARE * nodes * one
    print(
        f"bench-sandbox: {right} of {asked} right, {one:.1f} a second on one node and {all_nodes:.1f} on {nodes}, a "
        f"worker each, at load {os.getloadavg()[0]:.0f}: {all_nodes / one:.2f} times, {SHARE * nodes:.2f} wanted: "
        f"{'holds' if holds else 'DOES NOT HOLD'}"
    )
    return holds


def measured_on(cluster: MiniSlurm, count: int) -> dict[str, float]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | cluster.environment | {"PYTHONPATH": path}
    command = ["srun", "--nodes", count, "--ntasks-per-node", 1, "--cpus-per-task", 1, sys.executable, __file__]
    return json.loads(cluster(*command, env=environment, timeout=WAIT_S).splitlines()[-1])


def grade() -> None:
    """On every rank of a step: grade HumanEval's solutions once; rank 0 prints how long that took."""
    import torch.distributed as dist

    from megatron_gopd.evaluation.node_graders import NodeGraders
    from megatron_gopd.ranks import is_first, ranks

    answers, tests = texts(human_eval())
    batch = [
        Trajectory(Prompt(str(i), [], None, "", [0], [0], [0], tests=test), 0, list(answer.encode()), None, "stop")
        for i, (answer, test) in enumerate(zip(answers, tests, strict=True))
    ]
    calm = Sandbox(seconds_per_test=60, seconds=120, workers=1)
    with ranks(compare_gpus=False), NodeGraders("code", calm) as graders:
        graders.grade(batch[: 4 * dist.get_world_size()], Bytes())  # workers start
        started = time.perf_counter()
        grades = graders.grade(batch, Bytes())
        seconds = time.perf_counter() - started
        if is_first():
            right = sum(each.score == 1.0 for each in grades)
            print(json.dumps({"seconds": seconds, "answers": len(grades), "right": right}), flush=True)


if __name__ == "__main__":
    grade()
