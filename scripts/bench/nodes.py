"""make bench-nodes: servers on every node of a job, in numbers, on a real SLURM cluster of simulated nodes.

An update of the weights on one, two and three nodes with a server each: its seconds, and the bytes that enter a node,
as its network counts them, in models. The same rollout by two nodes with a server each and by one node with two, in
turns. Prints tables and one line that sums up; exit code 0 when every bound holds.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))
from scripts.mini_slurm import MiniSlurm, install  # noqa: E402
from tests.chat_models import save_chat_model, write_questions  # noqa: E402

MODELS, SLOWER = 1.05, 1.15  # bounds: models that enter a node in an update; time of two nodes, over one's
SIZES = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_key_value_heads": 4}
RANKS = 2  # on a node, where weights are updated
UPDATES, TURNS, PROMPTS, TOKENS, BUCKET = 5, 7, 32, 96, 2**21
WAIT_S = 1800  # for one step: the machine may be busy


def main() -> int:
    install()
    with tempfile.TemporaryDirectory() as name, MiniSlurm(3, gpus=1) as cluster:
        folder = Path(name)
        save_chat_model(folder / "student", seed=1, **SIZES)
        save_chat_model(folder / "teacher", seed=2, **SIZES)
        write_questions(folder / "train.jsonl", PROMPTS)
        models = []
        for nodes in (1, 2, 3):
            for what, seconds, paused, entered in on_cluster(cluster, nodes, RANKS, "updates", folder):
                told = f"{seconds:8.3f} s, servers paused {paused:.3f} s, {entered:5.2f} models into a node"
                print(f"  {nodes} node(s), {what:36} {told}", flush=True)
                models.append(entered)
        ratios, seconds = on_cluster(cluster, 2, 1, "rollouts", folder)
    ratio = statistics.median(ratios)
    print(
        f"  one node with two servers {seconds[0]:.2f} s, two nodes with one each {seconds[1]:.2f} s; ratios", end=" "
    )
    print(", ".join(f"{each:.2f}" for each in sorted(ratios)))
    holds = max(models) <= MODELS and ratio <= SLOWER
    print(
        f"bench-nodes: at most {max(models):.2f} models enter a node in an update (bound {MODELS}); two nodes take "
        f"{ratio:.2f} of one node's time for the same rollout (bound {SLOWER}), at load {os.getloadavg()[0]:.0f}: "
        f"{'holds' if holds else 'MISSED'}"
    )
    return int(not holds)


def on_cluster(cluster: MiniSlurm, nodes: int, ranks: int, what: str, folder: Path) -> list:
    """What rank 0 of a step with `ranks` on each node found."""
    environment = os.environ | cluster.environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    step = [f"--time={WAIT_S // 60}", f"--nodes={nodes}", f"--ntasks-per-node={ranks}", "--cpus-per-task=1"]
    command = ["srun", *step, sys.executable, __file__]
    return json.loads(cluster(*command, what, folder, env=environment, timeout=WAIT_S).splitlines()[-1])


def configuration(folder: Path, layout: dict | None = None, **servers):
    from megatron_gopd.config import Config

    fp32 = {"dtype": "float32"}
    cpu = {
        "options": {"device": "cpu", "sleep-on-idle": True},
        "verify_every": 0,
        "sync_folder": str(folder / "shared"),
    }
    return Config.model_validate(
        {
            "run": {"name": "nodes", "steps": 1, "folder": str(folder / "runs")},
            "student": {"model": str(folder / "student"), "layout": layout or {}} | fp32,
            "teachers": {"one": {"model": str(folder / "teacher")} | fp32},
            "data": {"train": str(folder / "train.jsonl"), "batch_size": PROMPTS},
            "rollout": {
                "engine": "sglang",
                "max_response_tokens": TOKENS,
                "sglang": cpu | {"verify_every": 0} | servers,
            },
        }
    )


def updates(folder: Path) -> list[tuple[str, float, float, float]]:
    """On every rank of a step: (what, median seconds, seconds in which servers were paused, on average, models that
    entered the node that most entered) of updates.

    Of those of a node, every rank finds the same; of the pause, rank 0.
    """
    import torch.distributed as dist

    from megatron_gopd.policies.student import Student
    from megatron_gopd.rollout import SGLangEngine
    from megatron_gopd.rollout.server_weights import ServerWeights
    from megatron_gopd.runs import Spans

    nodes = dist.get_world_size() // RANKS
    layouts = {"whole on every rank": {}}
    if nodes > 1:
        layouts["a stage on each node"] = {"pp": nodes}
    if nodes == 2:  # of the model's four heads, each on another rank
        layouts["a shard on each rank"] = {"tp": nodes * RANKS}
    students = {name: Student(configuration(folder, layout)) for name, layout in layouts.items()}
    engine, found = SGLangEngine(configuration(folder)), []
    bytes_ = sum(tensor.nbytes for _, tensor in students["whole on every rank"].export())
    try:
        engine.start(students["whole on every rank"], folder / "logs" / f"of-{nodes}")
        engine._weights.close()
        for way in ("disk", "distributed"):
            settings = configuration(folder, sync=way, bucket_bytes=BUCKET)
            engine._weights = ServerWeights(settings, engine._pool, [], engine._homes.first_ranks)
            for name, student in students.items():
                engine.sync(student)  # connections are made
                before, _ = entered(), Spans().take()
                taken = statistics.median(seconds(lambda student=student: engine.sync(student)) for _ in range(UPDATES))
                paused = Spans().take().get("servers_paused", 0.0) / UPDATES
                everywhere = [0] * dist.get_world_size()
                dist.all_gather_object(everywhere, entered() - before)
                found.append((f"{way}, {name}", taken, paused, max(everywhere) / UPDATES / bytes_))
            engine._weights.close()
    finally:
        engine.close()
    return found


def rollouts(folder: Path) -> tuple[list[float], list[float]]:
    """On both ranks of a step: what two nodes take over what one takes, a turn each; and the median seconds of both."""
    from megatron_gopd.rollout.responses import PLAIN
    from megatron_gopd.rollout.sglang import SGLangEngine
    from megatron_gopd.training.job import build_job

    job = build_job(configuration(folder))
    engines = [SGLangEngine(configuration(folder, nodes=1, count=2)), SGLangEngine(configuration(folder, nodes="all"))]
    prompts = job.loader.prompts
    PLAIN["ignore_eos"] = True  # responses of one length: what differs is where servers stand
    try:
        for number, engine in enumerate(engines):
            engine.start(job.student, folder / "logs" / f"engine-{number}")
            engine.stop_ids = []
        turns = [
            [seconds(lambda engine=engine: list(engine.generate(prompts, 1))) for engine in engines]
            for _ in range(TURNS + 1)
        ]
    finally:
        for engine in engines:
            engine.close()
    of_one, of_two = zip(*turns[1:], strict=True)  # after a turn to warm up
    ratios = [two / one for one, two in zip(of_one, of_two, strict=True)]
    return ratios, [statistics.median(of_one), statistics.median(of_two)]


def entered() -> int:
    """Bytes that have come over this node's network so far; what its processes tell each other does not."""
    (line,) = [line for line in Path("/proc/self/net/dev").read_text().splitlines() if "eth0:" in line]
    return int(line.partition(":")[2].split()[0])


def seconds(function: Callable[[], object]) -> float:
    """Until every rank is through."""
    import torch.distributed as dist

    dist.barrier()
    start = time.perf_counter()
    function()
    dist.barrier()
    return time.perf_counter() - start


def rank(what: str, folder: str) -> None:
    from megatron_gopd.ranks import is_first, ranks

    with ranks(compare_gpus=False):
        found = {"updates": updates, "rollouts": rollouts}[what](Path(folder))
        if is_first():
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    sys.exit(rank(*sys.argv[1:]) if sys.argv[1:] else main())
