"""The versions that decide what a run computes."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import megatron_gopd

PACKAGES = ("torch", "megatron-core", "transformers", "sglang", "numpy")


def versions() -> dict[str, str]:
    """Of Python, this package and those it computes with."""
    found = {"python": platform.python_version(), "megatron_gopd": megatron_gopd.__version__}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found
