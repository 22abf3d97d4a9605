"""What ranks of test_senders do: a student over several of them, and two stand-ins that take its weights."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx

from megatron_gopd.config import Config, Layout
from megatron_gopd.mcore import weights
from megatron_gopd.mcore.model import build_model
from megatron_gopd.mcore.receivers import senders
from megatron_gopd.ranks import is_first, on_first
from megatron_gopd.servers.process import free_port
from tests.servers.real_server import healthy, wait_for

STAND_IN = Path(__file__).parents[1] / "servers" / "receiving_sglang.py"
BUCKET = 40_000


@contextlib.contextmanager
def servers(count: int) -> Iterator[list[str]]:
    """Their URLs; rank 0's children."""
    started = []

    def start() -> list[str]:
        ports = [free_port() for _ in range(count)]
        alone = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
        started.extend(subprocess.Popen([sys.executable, str(STAND_IN), str(port)], env=alone) for port in ports)
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        for url in urls:
            wait_for(lambda url=url: healthy(url), 120)
        return urls

    try:
        yield on_first(start)
    finally:
        for process in started:
            process.kill()
            process.wait()


def engine_of(model: Path, folder: Path, urls: list[str]):
    from megatron_gopd.rollout import SGLangEngine

    tree = {
        "run": {"name": "senders", "steps": 1, "folder": str(folder)},
        "student": {"model": str(model), "dtype": "float32"},
        "teachers": {"other": {"model": "not read here"}},
        "data": {"train": "none.jsonl", "batch_size": 1},
        "rollout": {
            "engine": "sglang",
            "sglang": {"urls": urls, "sync": "distributed", "verify_every": 0, "bucket_bytes": BUCKET},
        },
    }
    return SGLangEngine(Config.model_validate(tree))


def policy_of(folder: Path, layout: str) -> SimpleNamespace:
    model = build_model(folder, Layout.parse(layout), "float32")
    weights.load(model, folder)
    ranks = senders(model.groups)
    return SimpleNamespace(senders=ranks, export_part=lambda: weights.export_part(model, ranks))


def told(urls: list[str]) -> list[dict]:
    return [httpx.get(url, trust_env=False).json() for url in urls] if is_first() else []


def update(model: Path, folder: Path, layouts: list[str]) -> dict[str, list[dict]]:
    """{layout: what each of two servers says of itself after two updates}."""
    found = {}
    for layout in layouts:
        with servers(2) as urls:
            engine, policy = engine_of(model, folder, urls), policy_of(model, layout)
            try:
                engine.start(policy, folder / "logs")
                engine.sync(policy)
                found[layout] = told(urls)
            finally:
                engine.close()
    return found


def lose_one_on_the_way(model: Path, folder: Path, layout: str, after: int) -> list[dict]:
    """What the servers say after an update in which the first failed a bucket, without a word to who sent it."""
    with servers(2) as urls:
        engine, policy = engine_of(model, folder, urls), policy_of(model, layout)
        try:
            engine.start(policy, folder / "logs")
            on_first(lambda: httpx.post(f"{urls[0]}/fail", json={"after": after}, trust_env=False).status_code)
            engine.sync(policy)
            return told(urls)
        finally:
            engine.close()


def hashes(model: Path) -> dict[str, str]:
    """Of a folder's tensors, under their names."""
    from safetensors.torch import load_file

    from tests.tiny_models import with_single_experts

    tensors = with_single_experts(load_file(model / "model.safetensors"))
    return {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in tensors.items()}
