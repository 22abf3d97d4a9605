"""What this process is doing right now: said by whoever does it, shown by whoever wants to, handed through nobody."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Count:
    """Responses that are being sampled; any thread may add."""

    total: int
    of: str = ""  # whose they are, where not the whole job's
    done: int = 0
    tokens: int = 0

    def add(self, done: int, tokens: int) -> None:
        self.done += done
        self.tokens += tokens

    def close(self) -> None:
        """No more of them come."""
        self.total = self.done

    def __str__(self) -> str:
        return f"{self.done}/{self.total} responses, {self.tokens:,} tokens{self.of}"


_phase = "starting"
_count = Count(0)


def enter(phase: str) -> None:
    """Name what begins now."""
    global _phase
    _phase = phase


def sampling(total: int, of: str = "") -> Count:
    """To be told of each response of `total`."""
    global _count
    _count = Count(total, of)
    return _count


def now() -> str:
    """The phase, and how far the responses are that are under way."""
    count = _count
    return f"{_phase} {count}" if count.done < count.total else _phase
