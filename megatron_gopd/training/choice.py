"""Which responses of a step a person is shown."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b

import numpy as np

from megatron_gopd.data.trajectory import Trajectory
from megatron_gopd.policies.update import Update

Chosen = tuple[int, str]  # the number in the batch, and why


def choose(batch: list[Trajectory], update: Update, per_teacher: int, seed: int) -> list[Chosen]:
    """`per_teacher` responses of each teacher: by turns a random, the best, worst, longest and most disagreeing one.

    Random is by a hash of prompt and sample: the order in which responses finish does not matter, and where the data
    comes round again, so does the prompt, to be compared with itself. Among equals the random order decides.
    """
    at_random = sorted(range(len(batch)), key=lambda number: _lot(batch[number], seed))
    teachers = sorted({trajectory.prompt.teacher for trajectory in batch})
    of_teacher = {name: [at for at in at_random if batch[at].prompt.teacher == name] for name in teachers}
    return [chosen for rows in of_teacher.values() for chosen in _by_turns(_orders(rows, batch, update), per_teacher)]


def _by_turns(orders: dict[str, list[int]], count: int) -> list[Chosen]:
    """Each order names its first row that none before it has named, until there are `count` or none is left."""
    chosen: dict[int, str] = {}
    left = {why: iter(rows) for why, rows in orders.items()}
    while len(chosen) < min(count, len(orders["random"])):
        for why, rows in left.items():
            row = next((row for row in rows if row not in chosen), None)
            if row is not None and len(chosen) < count:
                chosen[row] = why
    return list(chosen.items())


def _orders(rows: list[int], batch: list[Trajectory], update: Update) -> dict[str, list[int]]:
    """{why: row numbers, the first choice first}, of rows in random order."""
    good, apart = _goodness(rows, batch, update), _disagreement(rows, batch, update)
    orders = {
        "random": rows,
        "best": sorted(rows, key=good, reverse=True),
        "worst": sorted(rows, key=good),
        "longest": sorted(rows, key=lambda row: len(batch[row]), reverse=True),
    }
    return orders | ({"disagreeing": sorted(rows, key=apart, reverse=True)} if apart else {})


def _goodness(rows: list[int], batch: list[Trajectory], update: Update) -> Callable[[int], float]:
    """The reward; where a row has none, the mean advantage; where there are no advantages, the mean log-prob."""
    if all(batch[row].reward is not None for row in rows):
        return lambda row: batch[row].reward
    column = update.metrics.get("advantage", update.logprobs)
    return dict(zip(rows, _means([column[row] for row in rows]), strict=True)).__getitem__


def _disagreement(rows: list[int], batch: list[Trajectory], update: Update) -> Callable[[int], float] | None:
    """Mean distance of the student's log-probs from the teacher's, else from the engine's; None: it has neither."""
    for name in ("teacher_logprobs", "behaviour_logprobs"):
        theirs = [getattr(batch[row], name) for row in rows]
        if all(values is not None for values in theirs):
            gaps = [update.logprobs[row] - values for row, values in zip(rows, theirs, strict=True)]
            return dict(zip(rows, _means(gaps, absolute=True), strict=True)).__getitem__
    return None


def _lot(trajectory: Trajectory, seed: int) -> tuple[bytes, bytes]:
    """By prompt first: the same prompts win in every step that has them."""
    prompt = f"{seed}\0{trajectory.prompt.id}".encode("utf-8", "backslashreplace")
    return blake2b(prompt).digest(), blake2b(b"%d\0%b" % (trajectory.sample, prompt)).digest()


def _means(rows: list[np.ndarray], *, absolute: bool = False) -> list[float]:
    """Of each row; 0 where it is empty."""
    lengths, flat = np.array([len(row) for row in rows]), np.concatenate(rows).astype(np.float64)
    sums = np.bincount(np.repeat(np.arange(len(rows)), lengths), np.abs(flat) if absolute else flat, len(rows))
    return (sums / np.maximum(lengths, 1)).tolist()
