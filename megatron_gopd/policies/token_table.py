"""Per-token results of a batch, computed by some ranks and known to all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_gopd.data.packing import MicroBatch


class TokenTable:
    """Columns of float32 values, one per response token of the whole batch.

    The ranks that computed a row put it in; `gather` adds the tables of all ranks (x + 0 = x, so this is exact under
    any layout of any model) and checks that every token was put in exactly once.
    """

    def __init__(self, response_lengths: Sequence[int], columns: Sequence[str]):
        self.columns = list(columns)
        self._bounds = np.concatenate([[0], np.cumsum(response_lengths)])
        self._values = torch.zeros(len(self.columns) + 1, int(self._bounds[-1]))  # last row: how often put
        self._put: list[tuple[Tensor, list[Tensor]]] = []  # still on their device: a copy would wait for it

    @property
    def tokens(self) -> int:
        return int(self._bounds[-1])

    @property
    def starts(self) -> Tensor:
        """[rows] int64, of each row's first response token."""
        return torch.from_numpy(self._bounds)[:-1]

    def indices(self, micro_batch: MicroBatch) -> Tensor:
        """[response tokens] where the micro-batch's tokens stand in the table."""
        return torch.from_numpy(self._bounds)[micro_batch.rows] + micro_batch.offsets

    def put(self, micro_batch: MicroBatch, columns: dict[str, Tensor]) -> None:
        self._put.append((self.indices(micro_batch), [columns[name].detach().float() for name in self.columns]))

    def gather(self) -> dict[str, list[np.ndarray]]:
        """Collective over all ranks: {column: [row's values [response] float32]}.

        From host memory, by gloo: ranks that have no part in the model wait here for those that have.
        """
        for where, columns in self._put:
            for index, column in enumerate(columns):
                self._values[index, where] = column.cpu()
            self._values[-1, where] += 1
        self._put.clear()
        dist.all_reduce(self._values)
        values = self._values.numpy()
        if not (values[-1] == 1).all():
            raise RuntimeError("some response tokens were scored by no rank, or by several: a fault of the layout")
        return {
            name: [values[index, first:last] for first, last in zip(self._bounds, self._bounds[1:], strict=False)]
            for index, name in enumerate(self.columns)
        }
