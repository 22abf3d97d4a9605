"""What rank 0 asks a rank's Sender to do, wherever it is."""

from __future__ import annotations

from typing import NamedTuple

import torch.distributed as dist

from megatron_gopd.rollout.sender import Sender

OVER = "over"


class SenderHandle(NamedTuple):
    """The sender of a rank, for rank 0."""

    rank: int
    own: Sender | None  # rank 0's; that of another serves there

    def __call__(self, what: str, *arguments, **keywords):
        """What its method `what` returns, or raises: a RuntimeError."""
        if self.own is not None:
            return None if what == OVER else getattr(self.own, what)(*arguments, **keywords)
        dist.send_object_list([(what, arguments, keywords)], dst=self.rank)
        if what == OVER:
            return None
        answer: list = [None]
        dist.recv_object_list(answer, src=self.rank)
        if isinstance(answer[0], RuntimeError):
            raise answer[0]
        return answer[0]


def serve(sender: Sender) -> None:
    """On a rank other than 0: do what rank 0 asks, until it is over."""
    while True:
        asked: list = [None]
        dist.recv_object_list(asked, src=0)
        what, arguments, keywords = asked[0]
        if what == OVER:
            return
        try:
            answer = getattr(sender, what)(*arguments, **keywords)
        except RuntimeError as error:
            answer = RuntimeError(str(error))
        dist.send_object_list([answer], dst=0)
