"""Levers left at `auto`, as fast as fits: the first rung of a ladder whose memory, as the plan counts it, is there."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from megatron_gopd.config import Config, schema
from megatron_gopd.config.models import Offload
from megatron_gopd.mcore.levers import is_open
from megatron_gopd.plan.roles import with_each_model

RECOMPUTE = ("none", "selective", "full")  # the faster first
COME: tuple[Offload, ...] = ("ahead", True)  # from host memory: likewise
AWAY = {"ahead": "in host memory, and back ahead of their use", True: "in host memory between uses"}


class Rung(NamedTuple):
    """What is computed again; the folders of frozen models that wait in host memory, and how they come back; how the
    student's optimizer does, if it goes."""

    recompute: str = RECOMPUTE[0]
    frozen: Collection[str] = ()
    scorers: Offload = True
    optimizer: Offload = False


def rungs(config: Config, sizes: dict[str, float]) -> Iterator[tuple[str, Config]]:
    """(what it asks for, the configuration with no lever left at `auto`), the fastest first.

    Everything stays on the GPU; then activations are computed again, in attention, in every layer; then what is idle
    waits in host memory: frozen models, the largest first, and the student's optimizer at last. What waits there comes
    back ahead of its use where there is room for it beside what is computed meanwhile.

    `sizes`: {model folder of a frozen model: bytes on a rank}.
    """
    largest = sorted(sizes, key=sizes.get, reverse=True)
    full = RECOMPUTE[-1]
    ladder = [Rung(recompute) for recompute in RECOMPUTE]
    ladder += [Rung(full, largest[: count + 1], come) for count in range(len(largest)) for come in COME]
    ladder += [Rung(full, largest, come, optimizer) for optimizer in COME for come in COME]
    seen: list[Config] = []
    for rung in ladder:
        pulled = pull(config, rung)
        if pulled not in seen:  # a lever that is set by hand makes rungs alike
            yield _in_words(config, rung), pulled
        seen.append(pulled)


def pull(config: Config, rung: Rung) -> Config:
    """Every lever that is open set."""

    def levers(settings: schema.Model) -> dict:
        trained = isinstance(settings, schema.Student)
        away = rung.optimizer if trained else settings.model in rung.frozen and rung.scorers
        wanted = {"offload": away, "recompute": rung.recompute, "overlap_communication": True}
        return {key: value for key, value in wanted.items() if is_open(settings, key)}

    return with_each_model(_with_reference(config), levers)


def most_resident(config: Config) -> Config:
    """The first rung."""
    return pull(config, Rung())


def most_frugal(config: Config) -> Config:
    """The last rung."""
    return pull(config, Rung(RECOMPUTE[-1], {settings.model for settings in config.scorers().values()}, True, True))


def _with_reference(config: Config) -> Config:
    """The student's initial weights as a reference with levers of their own, where a run has one."""
    asked = config.algorithm
    if not any(settings == config.initial_student() for settings in config.scorers().values()):
        return config
    return config.model_copy(update={"algorithm": asked.model_copy(update={"reference": config.initial_student()})})


def _in_words(config: Config, rung: Rung) -> str:
    """Of what is open only."""
    said = [f"recompute {rung.recompute}"] if is_open(config.student, "recompute") else []
    idle = {
        who: settings.model in rung.frozen and rung.scorers
        for who, settings in config.scorers().items()
        if is_open(settings, "offload")
    }
    if is_open(config.student, "offload"):
        idle["the student's optimizer"] = rung.optimizer
    for come, words in AWAY.items():
        if away := [who for who, goes in idle.items() if goes == come]:
            said.append(f"{words}: {', '.join(away)}")
    if idle and not any(idle.values()):
        said.append("all resident")
    return ", ".join(said) or "levers as they are set"
