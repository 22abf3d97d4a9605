"""Levers left at `auto`, as fast as fits: the first rung of a ladder whose memory, as the plan counts it, is there."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from megatron_gopd.config import Config, schema
from megatron_gopd.mcore.levers import is_open
from megatron_gopd.plan.roles import with_each_model

RECOMPUTE = ("none", "selective", "full")  # the faster first


def rungs(config: Config, sizes: dict[str, float]) -> Iterator[tuple[str, Config]]:
    """(what it asks for, the configuration with no lever left at `auto`), the fastest first.

    Everything stays on the GPU; then activations are computed again, in attention, in every layer; then what is idle
    waits in host memory: frozen models, the largest first, and the student's optimizer at last.

    `sizes`: {model folder of a frozen model: bytes on a rank}.
    """
    largest = sorted(sizes, key=sizes.get, reverse=True)
    ladder = [(recompute, largest[:0], False) for recompute in RECOMPUTE]
    ladder += [(RECOMPUTE[-1], largest[: count + 1], False) for count in range(len(largest))]
    ladder.append((RECOMPUTE[-1], largest, True))
    before = None
    for rung in ladder:
        pulled = pull(config, *rung)
        if pulled != before:  # a lever that is set by hand makes rungs alike
            yield _in_words(config, *rung), pulled
        before = pulled


def pull(config: Config, recompute: str, frozen: Collection[str], optimizer: bool) -> Config:
    """Every lever that is open set: what is computed again; the folders of frozen models, and whether the student's
    optimizer, that wait in host memory."""

    def levers(settings: schema.Model) -> dict:
        trained = isinstance(settings, schema.Student)
        away = optimizer if trained else settings.model in frozen
        wanted = {"offload": away, "recompute": recompute, "overlap_communication": True}
        return {key: value for key, value in wanted.items() if is_open(settings, key)}

    return with_each_model(_with_reference(config), levers)


def most_resident(config: Config) -> Config:
    """The first rung."""
    return pull(config, RECOMPUTE[0], (), False)


def most_frugal(config: Config) -> Config:
    """The last rung."""
    return pull(config, RECOMPUTE[-1], {settings.model for settings in config.scorers().values()}, True)


def _with_reference(config: Config) -> Config:
    """The student's initial weights as a reference with levers of their own, where a run has one."""
    asked = config.algorithm
    if not any(settings == config.initial_student() for settings in config.scorers().values()):
        return config
    return config.model_copy(update={"algorithm": asked.model_copy(update={"reference": config.initial_student()})})


def _in_words(config: Config, recompute: str, frozen: Collection[str], optimizer: bool) -> str:
    """Of what is open only."""
    said = [f"recompute {recompute}"] if is_open(config.student, "recompute") else []
    idle = {who: settings.model in frozen for who, settings in config.scorers().items() if is_open(settings, "offload")}
    if is_open(config.student, "offload"):
        idle["the student's optimizer"] = optimizer
    away = [who for who, goes in idle.items() if goes]
    if idle:
        said.append(f"in host memory between uses: {', '.join(away)}" if away else "all resident")
    return ", ".join(said) or "levers as they are set"
