"""Run by torchrun: ranks that took the same GPU, as their names for it say."""

import atexit
from unittest import mock

from megatron_gopd import gpu_of_rank
from megatron_gopd.ranks import ranks


class Kept:
    """Until the interpreter is torn down."""

    def __del__(self):
        print("torn down")


kept = Kept()
atexit.register(print, "all that runs at exit has run")
with mock.patch.object(gpu_of_rank, "_name", return_value="GPU-1"), ranks():
    raise AssertionError("these ranks began")
