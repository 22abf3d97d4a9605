"""The cache that grows holds what transformers' own holds."""

from __future__ import annotations

import torch
from transformers import DynamicCache, Qwen3Config

from megatron_gopd.rollout.growing_cache import LEAST, GrowingLayer, growing_cache

CONFIG = Qwen3Config(num_hidden_layers=1)


def test_it_holds_what_dynamic_cache_holds_while_rows_leave():
    ours, theirs = growing_cache(CONFIG), DynamicCache(config=CONFIG)
    torch.manual_seed(0)
    rows = 6
    for tokens in (5, *[1] * (3 * LEAST)):
        new = torch.randn(2, rows, 2, tokens, 4)
        for mine, their in zip(ours.update(*new, 0), theirs.update(*new, 0), strict=True):
            assert torch.equal(mine, their)
        if rows > 2 and ours.get_seq_length() % 20 == 0:
            kept, rows = torch.arange(rows)[1:], rows - 1
            ours.batch_select_indices(kept)
            theirs.batch_select_indices(kept)
    assert ours.get_seq_length() == theirs.get_seq_length() == 5 + 3 * LEAST


def test_a_token_is_written_and_not_copied_with_the_others():
    layer = GrowingLayer()
    layer.update(*torch.randn(2, 1, 1, 3, 4))
    place = layer.keys.data_ptr()
    layer.update(*torch.randn(2, 1, 1, 1, 4))
    assert layer.keys.data_ptr() == place


def test_layers_of_a_sliding_window_stay_transformers_own():
    config = Qwen3Config(num_hidden_layers=2, use_sliding_window=True, sliding_window=8, max_window_layers=1)
    kinds = [type(layer) is GrowingLayer for layer in growing_cache(config).layers]
    assert kinds == [True, False]
