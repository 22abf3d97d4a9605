"""A KV cache with room for the tokens to come: each writes its own keys and values, where transformers copies them all.

A decoding step of transformers' DynamicCache concatenates, so a response of T tokens copies O(T^2) of them.
"""

from __future__ import annotations

from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

LEAST = 32  # tokens of room made at a time; half of what is there, where that is more


class GrowingLayer(DynamicLayer):
    """`keys` and `values` [batch, groups, tokens, dim] are views of longer tensors."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Add the new tokens' [batch, groups, new, dim]; returns all of them."""
        held = self.get_seq_length()
        whole = held + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if held == 0 or self._long[0].shape[-2] < whole:
            self._long = [self._longer(old, new, whole) for old, new in self._pairs(key_states, value_states)]
        for long, new in zip(self._long, (key_states, value_states), strict=True):
            long[:, :, held:whole] = new
        self.keys, self.values = (long[:, :, :whole] for long in self._long)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows."""
        held = self.get_seq_length()
        self._long = [long[indices] for long in self._long]
        self.keys, self.values = (long[:, :, :held] for long in self._long)

    def _pairs(self, key_states: Tensor, value_states: Tensor):
        return (self.keys, key_states), (self.values, value_states)

    @staticmethod
    def _longer(old: Tensor, new: Tensor, tokens: int) -> Tensor:
        batch, groups, _, dim = new.shape
        long = new.new_empty(batch, groups, tokens + max(LEAST, tokens // 2), dim)
        if old.numel():
            long[:, :, : old.shape[-2]] = old
        return long


def has_windows(config: PretrainedConfig) -> bool:
    """Whether a layer forgets what is beyond a sliding window."""
    return any(DynamicCache(config=config).is_sliding)


def growing_cache(config: PretrainedConfig) -> DynamicCache:
    """DynamicCache(config=config) whose layers grow; those of a sliding window are transformers' own."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
