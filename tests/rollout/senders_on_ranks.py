"""What ranks of test_senders do: a student over several of them, and two stand-ins that take its weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import SimpleNamespace

import httpx

from megatron_gopd.config import Config, Layout
from megatron_gopd.mcore import weights
from megatron_gopd.mcore.model import build_model
from megatron_gopd.mcore.receivers import senders
from megatron_gopd.ranks import is_first, on_first

BUCKET = 40_000


def engine_of(model: Path, folder: Path, urls: list[str], verify_every: int = 0):
    from megatron_gopd.rollout import SGLangEngine

    tree = {
        "run": {"name": "senders", "steps": 1, "folder": str(folder)},
        "student": {"model": str(model), "dtype": "float32"},
        "teachers": {"other": {"model": "not read here"}},
        "data": {"train": "none.jsonl", "batch_size": 1},
        "rollout": {
            "engine": "sglang",
            "sglang": {"urls": urls, "sync": "distributed", "verify_every": verify_every, "bucket_bytes": BUCKET},
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


def update(model: Path, folder: Path, urls: dict[str, list[str]]) -> dict[str, list[dict]]:
    """{layout: what each of its servers says of itself after two updates}; `urls`: of each layout."""
    found = {}
    for layout, servers in urls.items():
        engine, policy = engine_of(model, folder, servers), policy_of(model, layout)
        try:
            engine.start(policy, folder / "logs")
            engine.sync(policy)
            found[layout] = told(servers)
        finally:
            engine.close()
    return found


def lose_one_on_the_way(model: Path, folder: Path, layout: str, after: int, urls: list[str]) -> list[dict]:
    """What the servers say after an update in which the first failed a bucket, without a word to who sent it."""
    engine, policy = engine_of(model, folder, urls), policy_of(model, layout)
    try:
        engine.start(policy, folder / "logs")
        on_first(lambda: httpx.post(f"{urls[0]}/fail", json={"after": after}, trust_env=False).status_code)
        engine.sync(policy)
        return told(urls)
    finally:
        engine.close()


def prove(model: Path, folder: Path, url: str, layout: str) -> list[int]:
    """Who sent; a real server's checksums are compared with those of all senders' tensors, or this raises."""
    engine, policy = engine_of(model, folder, [url], verify_every=1), policy_of(model, layout)
    try:
        engine.start(policy, folder / "logs")
    finally:
        engine.close()
    return policy.senders


def hashes(model: Path) -> dict[str, str]:
    """Of a folder's tensors, under their names."""
    from safetensors.torch import load_file

    from tests.tiny_models import with_single_experts

    tensors = with_single_experts(load_file(model / "model.safetensors"))
    return {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in tensors.items()}
