"""A rank's part of the weights, on its way to every server: bucket after bucket, as rank 0 says."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from datetime import timedelta
from queue import SimpleQueue

import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d
from torch import Tensor

from megatron_gopd.nodes import address_towards
from megatron_gopd.rollout.updates import Tensors, in_buckets
from megatron_gopd.rollout.weights_group import join
from megatron_gopd.servers.loop import in_a_thread

LOOK_S, POLL_S = 0.1, 0.0005
Head = tuple[dict, bool]  # what servers are told of a bucket; whether it is this sender's last


class Sender:
    """Its methods are called one after the other; what they begin goes on until `done`.

    Buckets are made in a thread, one ahead of the one that is sent: other ranks may draw along for theirs meanwhile.
    """

    def __init__(self, bucket_bytes: int, timeout_s: float, home: str):
        """
        Args:
            timeout_s: of those who wait for what this does; torch's own ends the process, and comes long after it.
            home: address of the node of rank 0, where servers are that listen on a loopback.
        """
        self._size, self._limit, self._home = bucket_bytes, timedelta(seconds=2 * timeout_s + 60), home
        self._group: dist.ProcessGroup | None = None
        self._begun: Future[dist.Work | None] = Future()

    def begin(self, part: Tensors) -> None:
        """Begin to make buckets of what is to be sent."""
        self._wanted, self._room, self._ready = True, threading.Semaphore(0), SimpleQueue()
        stream = torch.cuda.current_stream() if torch.cuda.is_available() else None
        self._made = in_a_thread(lambda: self._make(part, stream))

    def next(self) -> Head | None:
        """Make the next bucket the one to be sent, and say what servers are told of it. None: there are no more."""
        self._flat = None
        found = self._ready.get()
        if found is None:
            self._made.result()
            return None
        self._room.release()
        body, self._flat, is_last = found
        return body, is_last

    def finish(self) -> None:
        """Draw what is left, unsent: others draw it along."""
        self._wanted = False
        self._room.release()
        self._made.result()
        self._flat = None

    def open(self, hosts: list[str], backend: str) -> tuple[int, list[str]]:
        """Leave the last group, and open the port at which a new one meets, of this host's address towards each of
        `hosts`."""
        self.leave()
        self._backend = backend
        # listens on every address of this host, at a port that the system chooses
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, timeout=self._limit, wait_for_workers=False)
        return self._store.port, [address_towards(self._home if _is_loopback(host) else host) for host in hosts]

    def join(self, size: int, name: str) -> None:
        """Begin to form the group, as its rank 0."""

        def form() -> None:
            self._group = join(self._store, self._backend, size, name, self._limit)

        self._begun = in_a_thread(form)

    def broadcast(self) -> None:
        """Begin to send the bucket. NCCL connects in the first, and not before, and blocks: servers do so in theirs."""
        flat, stream = self._flat, torch.cuda.current_stream() if self._flat.is_cuda else None

        def begin() -> dist.Work:
            with torch.cuda.stream(stream):  # a thread begins on the first GPU
                return dist.broadcast(flat, src=0, group=self._group, async_op=True)

        self._begun = in_a_thread(begin)

    def done(self) -> bool:
        """Whether what was begun is done, after a look of LOOK_S at most. Raises RuntimeError: of gloo or NCCL."""
        deadline = time.monotonic() + LOOK_S
        while not self._is_done():
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        return True

    def leave(self, *, broken: bool = False) -> None:
        """Closing this side's connections is what frees a server that waits for a broadcast."""
        group, self._group, self._begun = [self._group], None, Future()
        if group[0] is None:
            return
        # to destroy a group of NCCL is to wait for what was begun in it
        stuck = broken and dist.get_backend(group[0]) == "nccl"
        (c10d._abort_process_group if stuck else dist.destroy_process_group)(group[0])
        if broken:  # and so it is to forget one of gloo
            in_a_thread(group.clear)

    def _is_done(self) -> bool:
        if not self._begun.done():
            return False
        work = self._begun.result()
        if work is None:
            return True
        if work.is_completed():
            work.wait()
            return True
        return False

    def _make(self, part: Tensors, stream: torch.cuda.Stream | None) -> None:
        try:
            with torch.cuda.stream(stream):
                for bucket, is_last in in_buckets(part, self._size):
                    if self._wanted:
                        self._ready.put((*_flattened(bucket), is_last))
                        self._room.acquire()
        finally:
            self._ready.put(None)


def _is_loopback(host: str) -> bool:
    return host == "localhost" or host == "::1" or host.startswith("127.")


def _flattened(bucket: list[tuple[str, Tensor]]) -> tuple[dict, Tensor]:
    bucket.sort(key=lambda named: -named[1].itemsize)  # SGLang wants each where its dtype is aligned
    body = {
        "names": [name for name, _ in bucket],
        "dtypes": [str(tensor.dtype).removeprefix("torch.") for _, tensor in bucket],
        "shapes": [list(tensor.shape) for _, tensor in bucket],
        "load_format": "flattened_bucket",
    }
    return body, torch.cat([tensor.flatten().view(torch.uint8) for _, tensor in bucket])
