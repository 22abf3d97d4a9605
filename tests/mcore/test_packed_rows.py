"""Rows in one micro-batch do not see each other, however they are computed together."""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

LENGTHS = [300, 290, 31, 31, 30, 25, 24, 9, 1, 17]  # alone: long ones; together: short ones of like length
STARTS = torch.tensor([0, *LENGTHS]).cumsum(0)


def group(size: int, rank: int = 0) -> SimpleNamespace:
    return SimpleNamespace(size=lambda: size, rank=lambda: rank)


def packed(*heads: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(sum(LENGTHS), count, 8, requires_grad=True) for count in heads]


def row_by_row(query, key, value) -> torch.Tensor:
    key, value = (x.repeat_interleave(2, dim=1) for x in (key, value))
    pieces = zip(*(x.split(LENGTHS) for x in (query, key, value)), strict=True)
    rows = [F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in row), is_causal=True) for row in pieces]
    return torch.cat([row.transpose(0, 1) for row in rows]).flatten(1)


@pytest.fixture(scope="module")
def attention():
    from megatron_gopd.mcore.attention import CausalAttention

    groups = SimpleNamespace(tp=group(1), cp=group(1))
    return CausalAttention(SimpleNamespace(kv_channels=8), 1, None, "self", pg_collection=groups)


def test_attention_and_its_gradient_are_those_of_each_row_alone(attention):
    from megatron_gopd.mcore.attention import PackedRows

    inputs = packed(4, 2, 2)
    output = attention(*inputs, None, packed_seq_params=PackedRows(cu_seqlens_q=STARTS, starts=STARTS.tolist()))
    expected = row_by_row(*inputs)
    torch.testing.assert_close(output, expected)
    upstream = torch.randn_like(output)
    for ours, theirs in zip(
        torch.autograd.grad(output, inputs, upstream), torch.autograd.grad(expected, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("cp", [1, 2])
def test_positions_are_those_of_each_row_alone(cp):
    import_module("megatron_gopd.mcore")  # prepares megatron.core
    rope_utils = import_module("megatron.core.models.common.embeddings.rope_utils")
    lengths = [length * 2 * cp for length in (5, 3, 4)]
    starts = torch.tensor([0, *lengths]).cumsum(0)
    freqs = torch.randn(max(lengths), 1, 1, 8)
    x = torch.randn(sum(lengths) // cp, 2, 8)
    turned = rope_utils._apply_rotary_pos_emb_thd(x, starts, freqs, cp_group=group(cp, cp - 1))
    for row, whole, length in zip(
        x.split([n // cp for n in lengths]), turned.split([n // cp for n in lengths]), lengths, strict=True
    ):
        chunks = torch.arange(length).chunk(2 * cp)
        here = torch.cat([chunks[cp - 1], chunks[cp]])  # the last rank holds the two in the middle
        alone = rope_utils._apply_rotary_pos_emb_bshd(row[:, None], freqs[here])[:, 0]
        assert torch.equal(whole, alone)
