"""What does not go with responses that are sampled ahead of the steps that train on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_gopd.config.schema import Rollout


def refuse_what_cannot_run_ahead(rollout: Rollout) -> None:
    """Raises ValueError, which says why and what to set instead."""
    most = rollout.max_staleness
    if rollout.over_sampling < 1:
        raise ValueError(
            f"over_sampling is {rollout.over_sampling:g}: below 1 a batch never fills; 1 asks for no more prompts than "
            f"steps take, 1.25 for a quarter more"
        )
    if not most:
        _refuse_without_staleness(rollout)
    elif rollout.engine != "sglang":
        raise ValueError(
            f"max_staleness: {most} needs engine: sglang, as an engine in this process samples and trains by turns: "
            f"set that engine, or max_staleness: 0"
        )
    elif rollout.sglang.colocated:
        raise ValueError(
            f"max_staleness: {most} does not go with sglang.colocated, as servers without their memory cannot sample "
            f"while a step trains: give them GPUs of their own and colocated: false, or set max_staleness: 0"
        )
    elif rollout.max_age is not None and not 1 <= rollout.max_age <= most:
        raise ValueError(
            f"max_age is {rollout.max_age}, and max_staleness {most}: responses are under way for 1 to {most} updates, "
            f"so write one of these, or leave it out"
        )


def _refuse_without_staleness(rollout: Rollout) -> None:
    ahead = {
        "over_sampling": (rollout.over_sampling != 1, "carries prompts over to later steps"),
        "max_age": (rollout.max_age is not None, "counts the updates that a response sees"),
        "order_window": (rollout.order_window is not None, "bounds how far responses overtake each other"),
        "sglang.on_update": (not rollout.sglang.flushes, "is of responses under way at an update"),
    }
    for key, (given, what) in ahead.items():
        if given:
            raise ValueError(
                f"{key} {what}, and at max_staleness: 0 there are none: set that to 1 or more, or leave {key} out"
            )
