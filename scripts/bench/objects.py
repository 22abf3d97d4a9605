"""What ranks hand to each other beside tensors: sent as pickled lists of numbers, and as arrays the way a run does.

Called by make bench-objects; prints seconds here and bytes at scale, and one line that sums up; exit code 0 when the
new way is faster everywhere. tests/test_objects.py sees to it that the same arrives.
"""

from __future__ import annotations

import pickle
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.ranks import on_ranks  # noqa: E402

RANKS, ROWS, TOKENS, SAMPLES = 8, 128, 16384, 8  # samples of a prompt
VOCABULARY, PROMPT, TESTS = 151936, 200, 100_000  # ids; tokens of a prompt; bytes of a code prompt's tests
LAW = 32  # response tokens whose whole distributions a rank tells
AT_SCALE, NODES = 1024, 8  # rows; nodes of 8 ranks
ROUNDS, SHARE = 5, 0.8  # at most, of the time that the old way takes: it sent some arrays as such


@dataclass
class Way:
    """Of one kind of message: seconds, and bytes that reach a rank."""

    seconds: float
    bytes: int


def main() -> int:
    found = on_ranks(RANKS, measure, timeout=1200)
    print(f"{RANKS} ranks by gloo, {ROWS} rows of {TOKENS} tokens; medians of {ROUNDS} rounds in turns")
    print(f"  {'':52}{'pickled lists':>20}{'arrays':>20}")
    for what, ways in found.items():
        print(f"  {what:52}" + "".join(f"{way.seconds:8.3f} s {way.bytes / 1e6:6.1f} MB" for way in ways))
    out, into = crossings(NODES, 1)  # between the first ranks of nodes
    flat = "{} and {}".format(*crossings(NODES, RANKS))  # of one that knows no nodes
    where = f"{AT_SCALE} rows from rank 0 on {NODES} nodes of {RANKS}"
    print(f"{where}: {out} copies leave its node, {into} enters each other, where one broadcast to all has {flat}")
    for what, ways in list(found.items())[:3]:  # those from rank 0
        sizes = (way.bytes * AT_SCALE / ROWS / 1e9 for way in ways)
        told = "; ".join(f"{size:.2f} GB a copy, {size * out:.1f} out, {size * into:.1f} in" for size in sizes)
        print(f"  {what:52} {told}")
    worst = max(arrays.seconds / lists.seconds for lists, arrays in found.values())
    holds = worst <= SHARE
    print(
        f"bench-objects: arrays take at most {worst:.2f} of the time that pickled lists take "
        f"(bound {SHARE}): {'holds' if holds else 'MISSED'}"
    )
    return int(not holds)


def crossings(nodes: int, ranks: int) -> tuple[int, int]:
    """How often a broadcast leaves the node of rank 0, and enters each other node.

    gloo's is a binomial tree (gloo/broadcast.cc): in round i, each of the first 2**i ranks sends the whole to the rank
    2**i after it.
    """
    out, into = 0, [0] * nodes
    for receiver in range(1, nodes * ranks):
        sender = receiver - (1 << receiver.bit_length() - 1)
        if sender // ranks != receiver // ranks:
            out += sender < ranks
            into[receiver // ranks] += 1
    return out, max(into)


def measure() -> dict[str, tuple[Way, Way]]:
    """What a rank does: {what is sent: (as pickled lists, as arrays)}."""
    found = {}
    for case in cases():
        seconds = in_turns(lambda case=case: case.old(case.lists), lambda case=case: case.new(case.arrays))
        sizes = case.old_copies * len(pickle.dumps(case.lists)), case.new_copies * packed_bytes(case.arrays)
        found[case.what] = tuple(Way(*each) for each in zip(seconds, sizes, strict=True))
    return found


@dataclass
class Case:
    what: str
    old: Callable  # how the lists travel
    lists: object
    new: Callable
    arrays: object
    old_copies: int = 1  # that reach a rank
    new_copies: int = 1


def cases() -> list[Case]:
    import torch.distributed as dist

    from megatron_gopd import objects
    from megatron_gopd.policies.scoring import from_holders
    from megatron_gopd.ranks import on_first
    from megatron_gopd.rollout.sampling import Response

    def by_on_first(value):
        return on_first(lambda: value)

    rows = responses()
    sampled = [(number, Response(*row, True, ((3, len(row[0])),))) for number, row in enumerate(rows)]
    logprobs = [row[1] for row in rows]
    mine = rows[dist.get_rank() :: RANKS]
    law = [(np.arange(LAW), np.random.default_rng(1).random((LAW, VOCABULARY), dtype=np.float32))]
    law = law if dist.get_rank() == 0 else []
    lists = [(tokens.tolist(), logprobs.tolist(), True) for tokens, logprobs in mine]
    shares = [Response(*row, True) for row in mine]
    everyone = {"old_copies": RANKS, "new_copies": RANKS}
    return [
        Case("servers' responses, to all", broadcast_pickled, trajectories(rows, 0), by_on_first, sampled),
        Case("the same, of prompts with tests", broadcast_pickled, trajectories(rows, TESTS), by_on_first, sampled),
        Case("served scorers' log-probs, to all", broadcast_pickled, logprobs, by_on_first, logprobs),
        Case("embedded engine's, all to all", gather_pickled, lists, objects.all_gather, shares, **everyone),
        Case(f"one rank's law of {LAW} tokens, to all", gather_pickled, law, from_holders, law, old_copies=RANKS),
    ]


def responses() -> list[tuple[np.ndarray, np.ndarray]]:
    """Token ids and log-probs, the same on every rank."""
    random = np.random.default_rng(0)
    return [
        (random.integers(0, VOCABULARY, TOKENS, dtype=np.int32), random.standard_normal(TOKENS, dtype=np.float32))
        for _ in range(ROWS)
    ]


def trajectories(rows: list[tuple[np.ndarray, np.ndarray]], tests: int) -> list:
    """With their prompts, and token ids as lists; `tests`: bytes of a prompt's tests."""
    from megatron_gopd.data import Prompt, Trajectory

    tokens = list(range(100_000, 100_000 + PROMPT))
    question = [{"role": "user", "content": "?" * 4 * PROMPT}]
    asked = [
        Prompt(f"p{number}", question, None, "teacher", *[tokens] * 3, tests="".join(map(str, range(tests // 5))))
        for number in range(ROWS // SAMPLES)
    ]
    return [
        Trajectory(asked[number // SAMPLES], number % SAMPLES, row[0].tolist(), row[1], "stop", 3)
        for number, row in enumerate(rows)
    ]


def broadcast_pickled(value: object) -> object:
    import torch.distributed as dist

    told = [value, None]  # and no error
    dist.broadcast_object_list(told)
    return told[0]


def gather_pickled(value: object) -> list:
    import torch.distributed as dist

    told = [None] * dist.get_world_size()
    dist.all_gather_object(told, value)
    return told


def packed_bytes(value: object) -> int:
    from megatron_gopd import objects

    head, arrays = objects.packed(value)
    return len(pickle.dumps(head)) + arrays.nbytes


def in_turns(old: Callable, new: Callable) -> tuple[float, float]:
    """Median seconds of each, the two taking turns after a round to warm up."""
    taken = [(seconds(old), seconds(new)) for _ in range(ROUNDS + 1)][1:]
    return statistics.median(each for each, _ in taken), statistics.median(each for _, each in taken)


def seconds(function: Callable) -> float:
    """Until every rank has it."""
    import torch.distributed as dist

    dist.barrier()
    start = time.perf_counter()
    function()
    dist.barrier()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
