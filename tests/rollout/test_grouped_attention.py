"""The decoding attention is torch's attention."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

KEYS = 9


def draw(heads: int, groups: int, queries: int):
    random = torch.Generator().manual_seed(heads * 10 + groups)
    shapes = [(3, heads, queries, 16), (3, groups, KEYS, 16), (3, groups, KEYS, 16)]
    return [torch.randn(shape, generator=random) for shape in shapes]


def padding() -> torch.Tensor:
    """[3, 1, 1, KEYS]: rows with 0, 2 and 5 keys of padding on the left."""
    return torch.stack([torch.arange(KEYS) >= first for first in (0, 2, 5)])[:, None, None]


@pytest.mark.parametrize("mask", ["none", "bool", "additive"])
@pytest.mark.parametrize(("heads", "groups"), [(6, 2), (4, 4), (4, 1)])
@pytest.mark.parametrize("queries", [1, 3])
def test_it_equals_sdpa(heads, groups, queries, mask):
    from megatron_gopd.rollout.grouped_attention import attend

    query, key, value = draw(heads, groups, queries)
    masks = {"none": None, "bool": padding(), "additive": torch.zeros(3, 1, 1, KEYS).masked_fill(~padding(), -1e9)}
    module = SimpleNamespace(is_causal=False, num_key_value_groups=heads // groups, training=False)
    answer, _ = attend(module, query, key, value, masks[mask])
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=masks[mask], enable_gqa=True
    )
    torch.testing.assert_close(answer, expected.transpose(1, 2), rtol=0, atol=1e-5)


def test_the_model_s_own_scaling_is_used():
    from megatron_gopd.rollout.grouped_attention import attend

    query, key, value = draw(4, 2, 1)
    answer, _ = attend(None, query, key, value, None, scaling=0.5)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=0.5, enable_gqa=True)
    torch.testing.assert_close(answer, expected.transpose(1, 2), rtol=0, atol=1e-5)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("queries", [1, KEYS])
def test_the_mask_is_transformers_own(queries, window):
    from transformers.masking_utils import causal_mask_function, sdpa_mask, sliding_window_causal_mask_function

    from megatron_gopd.rollout.grouped_attention import mask

    seen = sliding_window_causal_mask_function(window) if window else causal_mask_function
    asked = {"batch_size": 3, "q_length": queries, "kv_length": KEYS, "q_offset": KEYS - queries, "mask_function": seen}
    asked |= {"attention_mask": padding()[:, 0, 0], "allow_is_causal_skip": False}
    assert torch.equal(mask(**asked), sdpa_mask(**asked))
