"""Package metadata. Versions are pinned in constraints-cpu.txt and constraints-gpu.txt, not here.

megatron-core is installed by scripts/install/base.sh in a step of its own: its newest wheels declare Python >= 3.12 but
run on 3.11, and its declared dependencies are for a GPU.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

setup(
    name="megatron-gopd",
    version=re.search(r'__version__ = "(.+)"', (HERE / "megatron_gopd/__init__.py").read_text())[1],
    description="Large-scale Generalized On-Policy Distillation (G-OPD / ExOPD) of language models",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["megatron_gopd", "megatron_gopd.*"]),
    package_data={
        "megatron_gopd": [
            *("kernels/cpp/*", "launch/*.jinja", "evaluation/study/*.jinja", "view/assets/*", "servers/stubs/**/*.py"),
        ]
    },
    entry_points={"console_scripts": ["megatron-gopd = megatron_gopd.cli:app"]},
    install_requires=[
        "torch",
        "transformers",
        "tokenizers",
        "safetensors",
        "sentencepiece",
        "protobuf",
        "tiktoken",
        "numpy",
        "einops",
        "packaging",
        "psutil",
        "aiohttp",
        "orjson",
        "starlette",
        "uvicorn",
        "pydantic",
        "PyYAML",
        "typer",
        "rich",
        "pyarrow",
        "jinja2",
        "math-verify",
        "latex2sympy2_extended",
        "Pebble",
        "matplotlib",
        "wandb",
        "tensorboard",
    ],
    extras_require={
        "dev": ["httpx", "pytest", "pytest-timeout", "pytest-xdist", "ruff", "pre-commit", "gguf"],
        "browser": ["playwright"],  # of the slow tests that look at the page of view; scripts/install/browser.sh
        # Transformer Engine is built for the torch that is there, by scripts/install/transformer_engine.sh
        "gpu": ["sglang"],
        # what SGLang's server imports on a CPU; its own requirements name GPU packages (see scripts/install/base.sh)
        "sglang-cpu": """
            apache-tvm-ffi dill fastapi gguf interegular ipython jsonschema loguru msgspec numba openai orjson
            partial_json_parser pillow prometheus_client pybase64 python-multipart pyzmq requests scipy setproctitle
            soundfile uvloop xxhash zstandard
        """.split(),
    },
)
