"""Tiny models on disk, and a process group of one rank."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny_models import NAMES, save_tiny


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: save_tiny(folder, name) for name in NAMES}


@pytest.fixture(scope="session")
def sharded(tmp_path_factory) -> Path:
    """qwen3-untied in many files with an index."""
    return save_tiny(tmp_path_factory.mktemp("sharded"), "qwen3-untied", max_shard_size="100KB")


@pytest.fixture(scope="module")
def alone(models, sharded):
    """A process group of this process alone; the models are saved before."""
    from megatron_gopd.ranks import ranks

    with ranks():
        yield
