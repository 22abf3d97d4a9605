"""Tiny models with everything a run needs, written once a test run."""

from __future__ import annotations

import os
import shutil
import subprocess
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
def guard(tmp_path_factory) -> Path:
    """The library by which a CPU build of torch takes tensors of a GPU; to be loaded before torch."""
    import torch
    from torch.utils import cpp_extension

    if torch.version.cuda is not None:
        pytest.skip("a CUDA build of torch has a guard of its own")
    if shutil.which("c++") is None:
        pytest.skip("the stand-in for CUDA's guard is compiled")
    library = tmp_path_factory.mktemp("guard") / "cuda_guard.so"
    paths = [f"-I{path}" for path in cpp_extension.include_paths()]
    paths += [word for path in cpp_extension.library_paths() for word in (f"-L{path}", f"-Wl,-rpath,{path}")]
    flags = f"-std=c++20 -w -fPIC -shared -D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}".split()
    source = str(Path(__file__).parent / "cuda_guard.cpp")
    subprocess.run(["c++", *flags, source, *paths, "-lc10", "-ltorch_cpu", "-o", str(library)], check=True, timeout=300)
    return library


@pytest.fixture(scope="session")
def sglang_server(chat_models, tmp_path_factory):
    """The URL of a real SGLang server of the student's architecture: one for the whole test run."""
    from tests.servers.real_server import real_server

    with real_server(chat_models["student"], tmp_path_factory.mktemp("sglang") / "server.log") as url:
        yield url
