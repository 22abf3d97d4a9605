"""The random models of gpu-check, and the sizes of its runs. No torch here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """Of a Qwen3 model, or, with experts, a Qwen3-MoE one; `spread` is the standard deviation of its weights."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    groups: int
    head: int
    feed_forward: int
    spread: float
    experts: int = 0  # of `feed_forward` each, two of them a token
    tied: bool = False


# every dimension of a GPU's is a multiple of 128 where FP8's blocks ask for it; the vocabulary is odd
ON_GPU = Size(1003, 256, 4, 8, 4, 64, 512, spread=0.05)
ON_CPU = Size(131, 64, 2, 4, 2, 16, 96, spread=0.12)
MOE_ON_GPU = Size(1003, 256, 4, 8, 4, 64, 256, spread=0.05, experts=8)
MOE_ON_CPU = Size(131, 64, 2, 4, 2, 16, 48, spread=0.12, experts=4)
QWEN3_06B = Size(151936, 1024, 28, 16, 8, 128, 3072, spread=0.02, tied=True)

PROMPT_WORDS = (8, 60)  # of a prompt, evenly drawn; a word is a token

SMALL = ("student", "teacher", "reference", "expert-student", "expert-teacher")
LARGE = ("large-student", "large-teacher")


def size_of(name: str, device: str) -> Size:
    """On a CPU the large models are as small as the others."""
    gpu = device == "cuda"
    if name in LARGE and gpu:
        return QWEN3_06B
    if "expert" in name:
        return MOE_ON_GPU if gpu else MOE_ON_CPU
    return ON_GPU if gpu else ON_CPU
