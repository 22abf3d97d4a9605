"""Checksums of what SGLang makes of Hugging Face tensors."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from megatron_gopd.servers.fingerprints import Fingerprints

LAYER = "model.layers.0.mlp."


def fingerprints_of(ffn: int, padded: int) -> dict[str, str]:
    """Of a feed-forward layer of `ffn`, each matrix given with zeros up to `padded`."""
    random = torch.Generator().manual_seed(0)
    gate, up, down = (torch.rand(ffn, 64, generator=random) for _ in range(3))
    more = padded - ffn
    tensors = {
        "gate_proj.weight": F.pad(gate, (0, 0, 0, more)),
        "up_proj.weight": F.pad(up, (0, 0, 0, more)),
        "down_proj.weight": F.pad(down.T, (0, more)),
    }
    found = Fingerprints()
    for _ in found.of_passing((LAYER + name, tensor) for name, tensor in tensors.items()):
        pass
    return found._whole


@pytest.mark.parametrize(("ffn", "padded"), [(48, 64), (33, 64), (96, 96)])
def test_the_feed_forward_size_is_padded_as_a_server_on_a_cpu_does(ffn, padded):
    assert fingerprints_of(ffn, ffn) == fingerprints_of(ffn, padded)
    assert fingerprints_of(ffn, ffn).keys() == {f"{LAYER}gate_up_proj.weight", f"{LAYER}down_proj.weight"}
