"""Tiny models with everything a run needs, written once a test run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the tokenizers library warns at every fork otherwise


@pytest.fixture(scope="session")
def chat_models(tmp_path_factory) -> dict[str, Path]:
    """student and other: two random models; teacher: Llama, four layers; past: rows its tokenizer does not know."""
    from tests.chat_models import save_chat_model

    folder = tmp_path_factory.mktemp("chat-models")
    return {
        "student": save_chat_model(folder / "student", seed=1),
        "other": save_chat_model(folder / "other", seed=2),
        "teacher": save_chat_model(folder / "teacher", seed=3, family="Llama", num_hidden_layers=4),
        "past": save_chat_model(folder / "past", seed=4, vocab_size=2000),
    }


@pytest.fixture(scope="module")
def one_rank(chat_models):
    """A process group of this process alone."""
    from megatron_gopd.ranks import ranks

    with ranks():
        yield


@pytest.fixture(scope="session")
def sglang_server(chat_models, tmp_path_factory):
    """The URL of a real SGLang server of the student's architecture: one for the whole test run."""
    from tests.servers.real_server import real_server

    with real_server(chat_models["student"], tmp_path_factory.mktemp("sglang") / "server.log") as url:
        yield url
