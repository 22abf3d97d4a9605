"""A KV cache that stays where it is, as steps that a GPU replays need it.

A bucket (rows, tokens) is a view of the beginning of tensors that are made once: what finished rows leave is room for
the longer responses of the others.
"""

from __future__ import annotations

from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

from megatron_gopd.data.buckets import Bucket


class FixedLayer(DynamicLayer):
    """`keys` and `values` [rows, groups, tokens, dim] are views; `place` [1]: where a new token's are written."""

    def __init__(self, room: int, place: Tensor):
        super().__init__()
        self._room, self._place = room, place

    def begin(self, bucket: Bucket) -> None:
        """The next tokens are prompts."""
        self._bucket, self._prompts = bucket, True
        if self.is_initialized:
            self._show(bucket)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Zeros: what is not attended to is multiplied by 0, and must be finite."""
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True
        new = key_states, value_states
        self._shapes = [(each.shape[1], each.shape[3]) for each in new]
        self._whole = [each.new_zeros(self._room * each.shape[1] * each.shape[3]) for each in new]
        self._show(self._bucket)

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Add prompts, which see themselves only, or one token a row, which sees the bucket."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        for held, new in ((self.keys, key_states), (self.values, value_states)):
            if self._prompts:
                held[:, :, : new.shape[2]] = new
            else:
                held.index_copy_(2, self._place, new)
        return (key_states, value_states) if self._prompts else (self.keys, self.values)

    def move(self, kept: Tensor, bucket: Bucket, held: int) -> None:
        """To `bucket`: of its rows `kept` [rows], the first `held` tokens."""
        moved = [each[:, :, :held].index_select(0, kept) for each in (self.keys, self.values)]
        self._show(bucket)
        for each, tokens in zip((self.keys, self.values), moved, strict=True):
            each[:, :, :held] = tokens

    def prompts_end(self) -> None:
        """The next tokens are one a row."""
        self._prompts = False

    def get_seq_length(self) -> int:
        """Of what prompts see before them; a decoding step is given its mask and positions."""
        return 0

    def _show(self, bucket: Bucket) -> None:
        self.keys, self.values = (
            whole[: bucket.room * groups * dim].view(bucket.rows, groups, bucket.tokens, dim)
            for whole, (groups, dim) in zip(self._whole, self._shapes, strict=True)
        )


class FixedCache(DynamicCache):
    """`place` [1]: the token that is written next, of every row."""

    def __init__(self, config: PretrainedConfig, room: int, place: Tensor):
        """`room`: rows times tokens of the largest bucket."""
        super().__init__(config=config)
        self.layers = [FixedLayer(room, place) for _ in self.layers]
        self.place = place

    def begin(self, bucket: Bucket) -> None:
        """Forget all; prompts come."""
        for layer in self.layers:
            layer.begin(bucket)

    def prompts_end(self) -> None:
        for layer in self.layers:
            layer.prompts_end()

    def move(self, kept: Tensor, bucket: Bucket, held: int) -> None:
        for layer in self.layers:
            layer.move(kept, bucket, held)


def token_bytes(config: PretrainedConfig, itemsize: int) -> int:
    """Of one token of one row, in all layers."""
    dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * config.num_hidden_layers * config.num_key_value_heads * dim * itemsize
