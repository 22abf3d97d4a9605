"""Roles of a job built, and stepped, as some rank of its world: bytes held, work and messages of a micro-batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from megatron_gopd.config import Config
from megatron_gopd.data.packing import Row
from megatron_gopd.data.trajectory import Prompt, Trajectory
from megatron_gopd.mcore.forward import run
from megatron_gopd.mcore.frozen import frozen_model
from megatron_gopd.mcore.model import Model
from megatron_gopd.mcore.optimizer import _parts, optimizer_tensors
from megatron_gopd.objective import gopd_loss, loss_of
from megatron_gopd.plan import seams
from megatron_gopd.plan.counts import Counts, at_depth, combined
from megatron_gopd.plan.fake_ranks import as_rank
from megatron_gopd.plan.judged import payload_for, reads_hidden_states, widest
from megatron_gopd.plan.ledger import Ledger
from megatron_gopd.plan.roles import Role, without_levers
from megatron_gopd.policies import scoring
from megatron_gopd.policies.micro_batches import my_micro_batches
from megatron_gopd.policies.payload import LOGPROBS
from megatron_gopd.policies.scorers import Scorers, _identity
from megatron_gopd.policies.student import Student


@dataclass(frozen=True)
class Held:
    """Bytes of one role on one rank."""

    parameters: int  # how many
    weights: int
    gradients: int = 0
    masters: int = 0  # float32 weights of the optimizer, where the model's are narrower
    moments: int = 0


@dataclass(frozen=True)
class Stage:
    """One pipeline stage of a role: what it does with a micro-batch of one row of `tokens` tokens."""

    tokens: int
    micro_batch: Counts  # forward, and backward with recomputation where it is trained
    gradients: Counts  # of a whole step: reduced over replicas
    step: Counts  # of a whole step: the optimizer, and weights gathered
    peak_bytes: float  # activations and work space, with as many micro-batches under way as the schedule has


def construct(config: Config, roles: list[Role], rank: int, world: int) -> dict[str, Held | None]:
    """{role: what rank `rank` of `world` holds of it, None for nothing}, built by the job's own code.

    Raises:
        UserError: what the job would refuse.
    """
    plain = without_levers(config)
    with as_rank(rank, world):
        student = Student(plain)
        scorers = Scorers(plain)
        held = {roles[0].name: held_by(student)}
        for role, bare in zip(roles[1:], _bare(plain, roles), strict=True):
            model = scorers._models[_identity(bare)]
            held[role.name] = None if model is None else Held(*_weights(model))
    return held


def _bare(plain: Config, roles: list[Role]) -> list:
    asked = plain.scorers()
    return [asked[role.name] for role in roles[1:]]


def held_by(student: Student) -> Held | None:
    """Bytes of a student on this rank, fake or real; moments as they will be after the first step."""
    if student.model is None:
        return None
    masters = moments = 0
    for part in _parts(student._optimizer):
        inner = [param for group in part.optimizer.param_groups for param in group["params"]]
        moments += 2 * sum(param.nbytes for param in inner) if student.config.optimizer.type == "adam" else 0
    states = {
        id(value) for part in _parts(student._optimizer) for s in part.optimizer.state.values() for value in s.values()
    }
    masters = sum(t.nbytes for t in optimizer_tensors(student._optimizer) if id(t) not in states)
    buffers = [*student._wrapped.buffers, *student._wrapped.expert_parallel_buffers]
    return Held(*_weights(student.model), sum(buffer.grad_data.nbytes for buffer in buffers), masters, moments)


def _weights(model: Model) -> tuple[int, int]:
    params = list(model.module.parameters())
    return sum(param.numel() for param in params), sum(param.nbytes for param in params)


def stages(config: Config, role: Role, world: int, tokens: int) -> list[Stage]:
    """Every pipeline stage of a role, stepped as its first rank: first, middle and last ones are told apart.

    A stage of L equal layers is stepped with one layer and with two: the difference is a layer.
    """
    layout, layers = role.settings.layout, role.architecture.layers // role.settings.layout.pp
    measured = {}
    for stage in {0, min(1, layout.pp - 1), layout.pp - 1}:
        one, two = (_step(config, role, world, tokens, stage, depth) for depth in (1, 2))
        measured[stage] = _deep(layers, one, two)
    middle = min(1, layout.pp - 1)
    return [measured.get(stage, measured[middle]) for stage in range(layout.pp)]


def _deep(layers: int, one: Stage, two: Stage) -> Stage:
    counts = {
        name: at_depth(layers, getattr(one, name), getattr(two, name)) for name in ("micro_batch", "gradients", "step")
    }
    peak = one.peak_bytes + (layers - 1) * (two.peak_bytes - one.peak_bytes)
    return Stage(one.tokens, **counts, peak_bytes=peak)


def _step(config: Config, role: Role, world: int, tokens: int, stage: int, depth: int) -> Stage:
    with seams.layers_a_stage(depth):
        return step(config, role, world, tokens, first_rank(role, world, stage))


def first_rank(role: Role, world: int, stage: int) -> int:
    span = role.settings.layout.span(world, role.name)
    return span[0] + stage * (len(span) // role.settings.layout.pp)


def step(config: Config, role: Role, world: int, tokens: int, rank: int) -> Stage:
    """One update of the student, or one scoring pass, as rank `rank`: a row of `tokens` tokens a micro-batch, as many
    micro-batches as pipeline stages."""
    layout, plain = role.settings.layout, without_levers(config)
    unit = layout.tp * (2 * layout.cp if layout.cp > 1 else 1)
    tokens = -(-tokens // unit) * unit
    training = plain.training.model_copy(update={"max_tokens_per_micro_batch": tokens})
    plain = plain.model_copy(update={"training": training})
    with as_rank(rank, world) as ledger:
        taken = _update if role.trained else _score
        return taken(plain, role, tokens, ledger)


def _update(config: Config, role: Role, tokens: int, ledger: Ledger) -> Stage:
    student = Student(config)
    micro_batches = role.settings.layout.pp
    loss, payload, teacher = gopd_loss(1.0, None), LOGPROBS, ""
    if reads_hidden_states(config):
        loss, payload, teacher = loss_of(config.algorithm), payload_for(student), widest(config)
    batch = _batch(student.model.groups.dp.size() * micro_batches, tokens, teacher)
    with ledger.part("update") as counts:
        student.update(batch, loss, payload)
    empty = Counts()
    gradients, optimizer = ledger.parts.get("gradients", empty), ledger.parts.get("step", empty)
    return Stage(tokens, combined([(1 / micro_batches, counts)]), gradients, optimizer, counts.peak_bytes)


def _score(config: Config, role: Role, tokens: int, ledger: Ledger) -> Stage:
    settings = role.settings
    model = frozen_model(settings.model, settings.layout, settings.dtype)
    rows = [Row([0], [0] * tokens)] * (model.groups.dp.size() * settings.layout.pp)
    temperature, naive = config.rollout.temperature, config.training.logprob == "naive"
    with ledger.part("score") as counts:
        if reads_hidden_states(config):  # which leave for the host
            run(model, my_micro_batches(model, rows, tokens), lambda hidden, micro_batch: None, train=False)
        else:
            scoring.score(model, rows, temperature=temperature, max_tokens=tokens, naive=naive)
    return Stage(tokens, combined([(1 / settings.layout.pp, counts)]), Counts(), Counts(), counts.peak_bytes)


def _batch(rows: int, tokens: int, teacher: str) -> list[Trajectory]:
    """Rows that are one token of a prompt and a response, `tokens` to compute."""
    prompt = Prompt("row", [], None, teacher, [0], [0], [0])
    zeros, ids = np.zeros(tokens, dtype=np.float32), np.zeros(tokens, dtype=np.int32)
    scores = {"teacher_logprobs": zeros, "reference_logprobs": zeros}
    return [Trajectory(prompt, 0, ids, zeros, "stop", outcome=0.0, **scores) for _ in range(rows)]


def sample_ranks(roles: list[Role], world: int) -> list[int]:
    """First, middle and last rank, and one of every pipeline stage of every role."""
    ranks = {0, world // 2, world - 1}
    for role in roles:
        ranks |= {first_rank(role, world, stage) for stage in range(role.settings.layout.pp)}
    return sorted(ranks)
