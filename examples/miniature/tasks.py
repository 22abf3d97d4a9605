"""Two tasks small enough that a 162,528-parameter model learns them in minutes, as prompt files.

    python examples/miniature/tasks.py assets/miniature

math, three steps of mental arithmetic:  49A+2B-5C-2=  ->  A51B46C44     (51, 46, 44)
code, a program run on a string:         ehhf:ArBsCr=  ->  AfhheBhfheCehfh
    r reverses, l rotates left, s swaps the first two, u shifts every letter up

An answer is right when it stops by itself and ends with the last label and its value (C44); steps before it may be left
out, at the cost of more mistakes. A prompt's crc32 tells what it is for: 1 in 50 is held out for the report, 1 in 50 is
for tuning, the others are trained on.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

LETTERS = "abcdefgh"
LABELS = "ABC"  # of the steps
Domain = Literal["math", "code"]
DOMAINS: tuple[Domain, ...] = ("math", "code")
FOR = {0: "held_out", 1: "validation"}  # crc32 % 50 -> what a prompt is for; every other: train


@dataclass(frozen=True)
class Problem:
    """`start` and the operations done to it, one after the other."""

    domain: Domain
    start: str
    operations: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """What is asked: 12 characters."""
        colon = ":" if self.domain == "code" else ""
        return f"{self.start}{colon}{''.join(map(''.join, zip(LABELS, self.operations, strict=True)))}="

    @property
    def values(self) -> list[str]:
        """The right value after each operation."""
        values = [self.start]
        for operation in self.operations:
            values.append(apply(self.domain, values[-1], operation))
        return values[1:]

    @property
    def label(self) -> str:
        """What a right answer ends with."""
        return LABELS[-1] + self.values[-1]

    @property
    def split(self) -> str:
        return FOR.get(zlib.crc32(self.prompt.encode()) % 50, "train")


def apply(domain: Domain, value: str, operation: str) -> str:
    """The value after one operation; numbers are taken modulo 100."""
    if domain == "math":
        return f"{(int(value) + int(operation)) % 100:02d}"
    shifted = "".join(LETTERS[(LETTERS.index(letter) + 1) % len(LETTERS)] for letter in value)
    return {
        "r": value[::-1],
        "l": value[1:] + value[0],
        "s": value[1] + value[0] + value[2:],
        "u": shifted,
    }[operation]


def problems(domain: Domain, split: str, rng: random.Random) -> Iterator[Problem]:
    """Endless problems of one split; the same may come again."""
    while True:
        problem = _draw(domain, rng)
        if problem.split == split:
            yield problem


def demonstration(problem: Problem, rng: random.Random, full: float = 0.5, noise: float = 0.15) -> str:
    """An answer as a corpus of mixed quality has it: steps left out, mistakes that later steps go on from.

    full: the share of answers with every step; the others write each step but the last with a chance of their own.
    noise: the chance that a value that is written is wrong.
    """
    thorough = 1.0 if rng.random() < full else rng.random()
    value, text = problem.start, ""
    for label, operation in zip(LABELS, problem.operations, strict=True):
        value = apply(problem.domain, value, operation)
        if label == LABELS[-1] or rng.random() < thorough:
            value = _mistaken(problem.domain, value, rng) if rng.random() < noise else value
            text += label + value
    return text


def write(folder: Path, demonstrations: int = 65_536, train: int = 4096, others: int = 1000) -> None:
    """Write DOMAIN_SPLIT.jsonl of train, validation and held_out, no prompt twice, and corpus.jsonl of both."""
    folder.mkdir(parents=True, exist_ok=True)
    for domain in DOMAINS:
        for split, count in (("train", train), ("validation", others), ("held_out", others)):
            rows = (_row(problem) for problem in _different(domain, split, count))
            _write(folder / f"{domain}_{split}.jsonl", rows)
    _write(folder / "corpus.jsonl", _corpus(demonstrations))


def _draw(domain: Domain, rng: random.Random) -> Problem:
    if domain == "code":
        start = "".join(rng.choice(LETTERS) for _ in range(4))
        return Problem("code", start, tuple(rng.choice("rlsu") for _ in LABELS))
    start = value = rng.randrange(100)
    operations = []
    for _ in LABELS:
        step = rng.choice((-1, 1)) * rng.randrange(1, 6)
        step = step if 0 <= value + step <= 99 else -step
        value += step
        operations.append(f"{step:+d}")
    return Problem("math", f"{start:02d}", tuple(operations))


def _mistaken(domain: Domain, value: str, rng: random.Random) -> str:
    if domain == "math":
        return f"{(int(value) + rng.choice((-10, 10, -1, 1, 2, -2))) % 100:02d}"
    letters = list(value)
    one, other = rng.sample(range(len(letters)), 2)
    if rng.random() < 0.5:
        letters[one], letters[other] = letters[other], letters[one]
    else:
        letters[one] = rng.choice(LETTERS)
    return "".join(letters)


def _different(domain: Domain, split: str, count: int) -> list[Problem]:
    rng = random.Random(f"{domain} {split}")
    found: dict[str, Problem] = {}
    for problem in problems(domain, split, rng):
        found.setdefault(problem.prompt, problem)
        if len(found) == count:
            return list(found.values())
    return []


def _corpus(count: int) -> Iterator[dict]:
    """Demonstrations, of either domain in turn."""
    rng = random.Random("corpus")
    streams = [problems(domain, "train", rng) for domain in DOMAINS]
    for number in range(count):
        problem = next(streams[number % len(streams)])
        yield {"prompt": problem.prompt, "response": demonstration(problem, rng)}


def _row(problem: Problem) -> dict:
    return {"id": problem.prompt, "prompt": problem.prompt, "label": problem.label, "opd_teacher": problem.domain}


def _write(path: Path, rows: Iterator[dict]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    partial.replace(path)


def main(folder: Annotated[Path, typer.Argument(help="folder of the prompt files")]) -> None:
    """Write the miniature's prompts and corpus; the same files every time."""
    write(folder)
    print(f"{folder}: prompts of {' and '.join(DOMAINS)}, and the base model's corpus")


if __name__ == "__main__":
    typer.run(main)
