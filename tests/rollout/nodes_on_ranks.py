"""What ranks of test_nodes do: two nodes that are one machine, each of two ranks, with stand-ins for SGLang."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import torch
import torch.distributed as dist

from megatron_gopd.config import Config
from megatron_gopd.config.models import Scorer
from megatron_gopd.data.packing import Row
from megatron_gopd.errors import UserError
from megatron_gopd.policies.served import ServedScorer
from megatron_gopd.ranks import is_first, on_first
from megatron_gopd.servers import keeper, launch, process, server, supervisor
from megatron_gopd.servers.server import State
from tests.rollout.sample_on_ranks import prompts

PATIENCE_S = 1.0
STAND_IN = Path(__file__).parents[1] / "servers" / "stand_in_sglang.py"


def in_nodes() -> None:
    """Ranks 0 and 1 on node `a`, 2 and 3 on node `b`; servers are stand-ins."""
    os.environ["SLURMD_NODENAME"] = "ab"[dist.get_rank() // 2]
    launch.command = stand_in
    supervisor.WATCH_S = server.POLL_S = 0.1
    keeper.POLL_S = 0.02
    process.STOP_S = 1.0


def stand_in(model, port, dtype, options, *, host, key) -> list[str]:
    return [sys.executable, str(STAND_IN), host, str(port), *([str(key)] if key else [])]


def policy() -> SimpleNamespace:
    def export(receivers=None):
        for name in ("one", "two"):
            tensor = torch.full((4,), 2.0)
            dist.broadcast(tensor, src=0)  # an export is collective
            yield name, tensor

    return SimpleNamespace(export=export)


def engine_of(model: Path, folder: Path, **servers):
    from megatron_gopd.rollout import SGLangEngine

    servers = {"verify_every": 0, "sync_folder": str(folder / "shared"), "start_timeout_s": 60} | servers
    tree = {
        "run": {"name": "nodes", "steps": 1, "folder": str(folder)},
        "student": {"model": str(model), "dtype": "float32"},
        "teachers": {"other": {"model": "not read here"}},
        "data": {"train": "none.jsonl", "batch_size": 1},
        "rollout": {"engine": "sglang", "sglang": servers, "max_response_tokens": 3, "samples_per_prompt": 2},
    }
    return SGLangEngine(Config.model_validate(tree))


def told(engine) -> list[dict]:
    """What the servers say of themselves, and what rank 0 knows of them."""
    if not is_first():
        return []
    return [
        httpx.get(f"{one.url}/server_info", trust_env=False).json() | {"name": one.name, "token": one.token}
        for one in engine._pool.servers
    ]


def sample_on_two_nodes(model: Path, folder: Path, servers: dict):
    """(trajectories, what servers said) of rank 0."""
    in_nodes()
    engine = engine_of(model, folder, **servers)
    try:
        engine.start(policy(), folder / "logs")
        engine.sync(policy())
        answers = [each for chunk in engine.generate(prompts(8), 1) for each in chunk]
        return [(each.prompt.id, each.sample, int(each.weight_versions[0])) for each in answers], told(engine)
    finally:
        engine.close()


def sample_few_prompts(model: Path, folder: Path) -> dict[int, list[int]]:
    """{prompts: how many requests each of the four servers was asked}, of eight samples each."""
    in_nodes()
    engine, asked = engine_of(model, folder, count=2), {}
    try:
        engine.start(policy(), folder / "logs")
        for count in (1, 2, 3):
            before = told(engine)
            list(engine.generate(prompts(count), 1, samples=8))
            asked[count] = [new["sampled"] - old["sampled"] for old, new in zip(before, told(engine), strict=True)]
        return asked
    finally:
        engine.close()


def kill_one_of_the_other_node(model: Path, folder: Path):
    """What servers said before and after one of node b was killed, and the ids of what was sampled meanwhile."""
    in_nodes()
    engine = engine_of(model, folder, count=2)
    try:
        engine.start(policy(), folder / "logs")
        before = told(engine)
        if is_first():
            os.kill(before[3]["pid"], signal.SIGKILL)
        chunks = engine.generate(prompts(8), 1)
        sampled = sorted((each.prompt.id, each.sample) for chunk in chunks for each in chunk)
        deadline = time.monotonic() + 60
        while not on_first(lambda: [(one.lives, one.state) for one in engine._pool.servers][3] == (2, State.READY)):
            assert time.monotonic() < deadline
            engine.sync(policy())
            time.sleep(0.1)
        return before, told(engine), sampled
    finally:
        engine.close()


def score_on_two_nodes(model: Path, folder: Path):
    """The log-probs that every rank gets of eight rows, and the names of the teacher's servers."""
    in_nodes()
    settings = Scorer(engine="sglang", model=str(model), dtype="float32")
    teacher = ServedScorer(settings, "teachers.one", 1.0)
    try:
        teacher.start(folder / "logs")
        logprobs = teacher.score([Row([1, 2], [3, 4, 5])] * 8)
        return [each.tolist() for each in logprobs], on_first(lambda: [one.name for one in teacher._pool.servers])
    finally:
        teacher.close()


def refusals(model: Path, folder: Path) -> dict[str, str]:
    """What users are told."""
    in_nodes()
    said = {
        "too many": refusal(engine_of(model, folder, nodes=3), folder),
        "cannot write": refusal(engine_of(model, folder, sync_folder="/proc/none"), folder),
    }
    with socket.create_server(("127.0.0.1", 0)) as taken:
        if dist.get_rank() == 2:
            launch.free_port = lambda host: taken.getsockname()[1]
        said["port taken"] = refusal(engine_of(model, folder), folder)
    if dist.get_rank() == 2:
        launch.free_port = process.free_port
        launch.command = lambda *_, **__: [sys.executable, "-c", "print('no such GPU'); raise SystemExit(3)"]
    return said | {"cannot start": refusal(engine_of(model, folder), folder)}


def give_memory_away(model: Path, folder: Path):
    """What every server was asked of its memory in a release and a rollout of colocated servers."""
    in_nodes()
    engine = engine_of(model, folder, colocated=True)
    try:
        engine.start(policy(), folder / "logs")
        engine.release()
        asked = [each["memory"][:] for each in told(engine)]
        sampled = [each for chunk in engine.generate(prompts(8), 1) for each in chunk]
        return len(sampled), asked, [each["memory"] for each in told(engine)]
    finally:
        engine.close()


def hang_in_release(model: Path, folder: Path):
    """What users are told of a server of node b that never gives its memory away, and the seconds until then."""
    in_nodes()
    if dist.get_rank() == 2:
        os.environ["NEVER_ANSWERED"] = "/release_memory_occupation"
    engine = engine_of(model, folder, colocated=True, patience_s=PATIENCE_S)
    began = time.monotonic()
    try:
        engine.start(policy(), folder / "logs")
        began = time.monotonic()
        engine.release()
    except UserError as error:
        return str(error), time.monotonic() - began
    finally:
        engine.close()
    return "", 0.0


def refusal(engine, folder: Path) -> str:
    try:
        engine.start(policy(), folder / "logs")
    except UserError as error:
        return str(error)
    finally:
        engine.close()
    return ""
