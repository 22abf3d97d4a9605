"""Run by torchrun: ranks that took the same GPU, as their names for it say."""

from unittest import mock

from megatron_gopd import gpu_of_rank
from megatron_gopd.ranks import ranks

with mock.patch.object(gpu_of_rank, "_name", return_value="GPU-1"), ranks():
    raise AssertionError("these ranks began")
