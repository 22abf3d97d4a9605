"""Whether a server holds the model that a scorer is to be."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch

from megatron_gopd.config import schema
from megatron_gopd.errors import UserError
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.mcore.front_door import open_hf_weights
from megatron_gopd.servers.client import SGLangClient
from megatron_gopd.servers.fingerprints import Fingerprints, checksums_of, comparable, told


async def refuse_another_model(settings: schema.Scorer, who: str, client: SGLangClient) -> None:
    """That a server holds the model of `settings`: by architecture, and on a CPU by every weight.

    Raises UserError: it holds another.
    """
    about = await client.get("/model_info")
    config = json.loads(Path(settings.model, "config.json").read_text())
    if "model_type" not in about:
        raise UserError(f"{who}: {client.url} is no SGLang server; name another, or set engine: served for our scorer")
    if about["model_type"] != config["model_type"]:
        raise UserError(
            f"{who}: {client.url} serves a {about['model_type']} ({about.get('model_path')}), but "
            f"{settings.model} is a {config['model_type']}; name the right server, or the right model"
        )
    served = Path(str(about.get("model_path")))
    if (served / "config.json").is_file():  # holds on a GPU too, whose checksums are made otherwise
        shapes = (asdict(Architecture.read(folder)) for folder in (settings.model, served))
        refuse_unlike(differences(*shapes), settings, who, client.url, served)
    if not comparable(await client.get("/server_info")):
        return
    theirs = await checksums_of(client, settings.server.patience_s)
    fingerprints, source = Fingerprints(), open_hf_weights(settings.model)
    dtype, tied = getattr(torch, settings.dtype), config.get("tie_word_embeddings")
    named = ((name, source.tensor(name).to(dtype)) for name in sorted(source.names()))
    for _ in fingerprints.of_passing((n, t) for n, t in named if not (tied and n == "lm_head.weight")):
        pass
    if differing := fingerprints.differences(theirs):
        raise UserError(
            f"{who}: {client.url} does not hold the weights of {settings.model} in "
            f"{settings.dtype}: {told(differing)} differ; name the right server, or the right model"
        )


def refuse_unlike(wrong: list[str], settings: schema.Scorer, who: str, url: str, served: object) -> None:
    if wrong:
        raise UserError(
            f"{who}: {url} serves {served}, which is not like {settings.model}: {'; '.join(wrong[:3])}; "
            f"name the right server, or the right model"
        )


def differences(ours: dict, theirs: dict) -> list[str]:
    """Of two architectures."""
    return [f"{key}: {ours[key]} here, {theirs.get(key)} there" for key in ours if theirs.get(key) != ours[key]]
