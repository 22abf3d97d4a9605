"""Steps of a simulated pipeline, and what they amount to once it runs evenly."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Setting:
    """Keys of `rollout`."""

    max_staleness: int = 0
    over_sampling: float = 1.0
    max_age: int | None = None
    order_window: int | None = None


@dataclass(frozen=True)
class Step:
    """One of the trainer's."""

    end: float  # seconds since the start
    worked: float  # of its seconds, those in which the trainer did not wait
    served: float  # server seconds since the start in which there was something to decode
    sequences: float  # the same, times sequences
    tokens: float  # of responses
    staleness: float  # updates, summed over the tokens
    oldest: int  # updates since a prompt of the batch began


@dataclass(frozen=True)
class Simulated:
    """A setting's steady state: shares are of the seconds of all servers, and of the trainer's."""

    setting: Setting
    step_s: float
    servers_idle: float
    decoding: float  # sequences of a server, mean
    trainer_idle: float
    staleness_mean: float  # updates, over tokens
    staleness_max: int

    @property
    def steps_per_hour(self) -> float:
        return 3600 / self.step_s


def summary(steps: list[Step], before: int, servers: int, setting: Setting) -> Simulated:
    """Of the steps after the first `before`."""
    last, first, looked_at = steps[-1], steps[before - 1], steps[before:]
    seconds = last.end - first.end
    return Simulated(
        setting,
        step_s=seconds / len(looked_at),
        servers_idle=max(0.0, 1 - (last.served - first.served) / seconds / servers),
        decoding=(last.sequences - first.sequences) / seconds / servers,
        trainer_idle=1 - sum(step.worked for step in looked_at) / seconds,
        staleness_mean=sum(step.staleness for step in looked_at) / sum(step.tokens for step in looked_at),
        staleness_max=max(step.oldest for step in looked_at),
    )
