"""What an update on fake ranks is given where every token of the vocabulary is judged."""

from __future__ import annotations

from megatron_gopd.config import Config, schema
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.policies.hidden_scorers import HiddenScorers, judges_of
from megatron_gopd.policies.payload import Head, Payload
from megatron_gopd.policies.student import Student

ENOUGH_GIB = 2.0**20  # of host memory: one portion


def reads_hidden_states(config: Config) -> bool:
    return config.algorithm.READS == "hidden states"


def payload_for(student: Student) -> Payload:
    """Hidden states in one portion; the heads lie there already: they are no activations."""
    config = student.config
    training = config.training.model_copy(update={"hidden_states_gib": ENOUGH_GIB})
    payload = HiddenScorers(config.model_copy(update={"training": training})).payload
    for teacher in config.teachers:
        for who in judges_of(config, teacher):
            payload.shard(who, teacher, Head(student.model, config.rollout.temperature, naive=False))
    return payload


def widest(config: Config) -> str:
    """The teacher whose models have the largest hidden sizes together."""
    return max(config.teachers, key=lambda teacher: sum(map(width, judges_of(config, teacher).values())))


def width(judge: schema.Scorer) -> int:
    return Architecture.read(judge.model).hidden_size
