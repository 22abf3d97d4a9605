"""Who answers benchmarks: a copy of the model in this process, or SGLang servers that hold it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from megatron_gopd.config import Config
from megatron_gopd.config.models import Scorer
from megatron_gopd.errors import UserError
from megatron_gopd.rollout import EmbeddedEngine, FrozenSGLangEngine, RolloutEngine


def engine_of(
    model: Path, urls: Sequence[str], *, max_response_tokens: int, temperature: float, dtype: str, seed: int
) -> RolloutEngine:
    """The servers at `urls`, or, without any, this process. Raises UserError: what is no address."""
    limits = {"max_response_tokens": max_response_tokens, "temperature": temperature}
    if not urls:
        return EmbeddedEngine(model, dtype=dtype, seed=seed, **limits)
    try:
        held = Scorer(model=str(model), dtype=dtype, engine="sglang", server={"urls": list(urls)})
    except ValidationError as error:
        raise UserError(f"--server: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None
    tree = {
        "run": {"name": "evaluate", "steps": 1, "seed": seed},
        "student": {"model": str(model)},
        "algorithm": {"type": "sft"},  # nothing is trained, and no data is read
        "data": {"train": "none", "batch_size": 1},
        "rollout": limits,
    }
    return FrozenSGLangEngine(Config.model_validate(tree), held, "--server")
