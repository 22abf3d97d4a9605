"""The checksums that SGLang has of its parameters, computed from the policy's Hugging Face tensors."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from megatron_gopd.servers import replies
from megatron_gopd.servers.client import SGLangClient

VOCABULARY_MULTIPLE = 64  # rows SGLang pads an embedding to: DEFAULT_VOCAB_PADDING_SIZE
FEED_FORWARD_MULTIPLE = 32  # and on a CPU the feed-forward size: DEFAULT_MOE_PADDING_SIZE, of dense layers too
SHOWN = 3
_OF_FUSED = re.compile(r"(.+\.)(?:(q|k|v)_proj|(gate|up)_proj)\.(weight|bias)")
_PARTS = {"qkv_proj": 3, "gate_up_proj": 2}  # of experts: as many as there are
_EXPERT = re.compile(r"(.+\.mlp\.experts\.)(\d+)\.(gate|up|down)_proj\.weight")


class Fingerprints:
    """Checksums by SGLang's parameter names, of tensors as they pass by.

    For one unquantized tensor-parallel rank on a CPU: 8 bytes of SHA-256 of what the parameter holds
    (sglang/srt/utils/weight_checker.py). Queries, keys and values are one parameter there, gates and ups another, and
    all experts of a layer two.
    """

    def __init__(self):
        self._whole: dict[str, str] = {}
        self._parts: dict[str, dict[tuple, Tensor]] = {}

    def of_passing(self, tensors: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The tensors, unchanged."""
        for name, tensor in tensors:
            self._add(name, tensor)
            yield name, tensor

    @classmethod
    def gathered(cls, mine: Fingerprints | None) -> Fingerprints | None:
        """Of what passed by on several ranks, on rank 0; None: nothing did here. Collective."""
        every: list[Fingerprints | None] = [None] * dist.get_world_size()
        dist.gather_object(mine, every if dist.get_rank() == 0 else None, dst=0)
        found = cls()
        for each in filter(None, every):
            found._whole |= each._whole
            for held, parts in each._parts.items():
                found._parts.setdefault(held, {}).update(parts)
        return found if dist.get_rank() == 0 else None

    def differences(self, theirs: dict[str, str]) -> list[str]:
        """Names of parameters that are not the same on both sides; empty: all are equal, bit for bit."""
        ours = self._whole | {name: _hash(_joined(parts)) for name, parts in self._parts.items()}
        return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))

    def _add(self, name: str, tensor: Tensor) -> None:
        tensor = _padded(name, tensor)
        if expert := _EXPERT.fullmatch(name):
            down = expert[3] == "down"
            place = (int(expert[2]), ("gate", "up", "down").index(expert[3]))
            self._keep(f"{expert[1]}{'w2' if down else 'w13'}_weight", place, tensor)
        elif fused := _OF_FUSED.fullmatch(name):
            part = fused[2] or fused[3]
            held = f"{fused[1]}{'qkv' if fused[2] else 'gate_up'}_proj.{fused[4]}"
            self._keep(held, (("q", "k", "v", "gate", "up").index(part),), tensor)
        elif name in ("model.embed_tokens.weight", "lm_head.weight"):
            self._whole[name] = _hash(tensor, tensor.new_zeros(-len(tensor) % VOCABULARY_MULTIPLE, tensor.shape[1]))
        else:
            self._whole[name] = _hash(tensor)

    def _keep(self, held: str, place: tuple, tensor: Tensor) -> None:
        # one buffer may be handed out again and again
        parts = self._parts.setdefault(held, {})
        parts[place] = tensor.detach().cpu().clone()
        if len(parts) == _PARTS.get(held.rsplit(".", 2)[1]):
            self._whole[held] = _hash(_joined(self._parts.pop(held)))


def comparable(about: dict) -> bool:
    """Whether the checksums of a server that says this of itself can be compared with these: not where they are of
    shards, of quantized weights, or made on a GPU, which hashes otherwise."""
    sizes = about.get("tp_size"), about.get("pp_size")
    return about.get("device") == "cpu" and sizes == (1, 1) and not about.get("quantization")


async def checksums_of(client: SGLangClient, timeout: float) -> dict[str, str]:
    """By parameter, of a server whose checksums are comparable."""
    reply = await client.post_for(replies.Checksums, "/weights_checker", {"action": "checksum"}, timeout=timeout)
    return reply.ranks[0].checksums


def told(differing: list[str]) -> str:
    """The first few names, for a message."""
    return ", ".join(differing[:SHOWN]) + (f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else "")


def _padded(name: str, tensor: Tensor) -> Tensor:
    """A matrix of a feed-forward layer with the zeros that SGLang puts behind it."""
    down, rising = name.endswith(".down_proj.weight"), name.endswith((".gate_proj.weight", ".up_proj.weight"))
    missing = -tensor.shape[1 if down else 0] % FEED_FORWARD_MULTIPLE if down or rising else 0
    return F.pad(tensor, (0, missing) if down else (0, 0, 0, missing)) if missing else tensor


def _joined(parts: dict[tuple, Tensor]) -> Tensor:
    return torch.cat([parts[place] for place in sorted(parts)])


def _hash(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.digest()[:8].hex()
