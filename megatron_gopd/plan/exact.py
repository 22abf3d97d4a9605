"""What algorithm.gradient: exact asks beside the student's update: heads on its last stage, and hidden states that
travel there through host memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from megatron_gopd.config import Config
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.plan import price
from megatron_gopd.plan.counts import Collective, Counts
from megatron_gopd.plan.hardware import GIB, Machine
from megatron_gopd.plan.judged import reads_hidden_states, width
from megatron_gopd.plan.placement import ITEM, Placement
from megatron_gopd.plan.roles import STUDENT, Role
from megatron_gopd.plan.workload import Workload
from megatron_gopd.policies.exchange import ROUND_BYTES
from megatron_gopd.policies.hidden_scorers import judges_of
from megatron_gopd.policies.served_states import ranks_that_ask
from megatron_gopd.servers.hidden_states import NUMBER_BYTES, READ_BYTES_PER_S


@dataclass(frozen=True)
class Payload:
    """Hidden states of the response tokens of one step, of all models that judge them."""

    bytes: float  # of the batch
    held: float  # bytes, of a rank that computed or fetched from servers as much as any, were memory not bounded
    fetched: float  # bytes that come to a rank of the student's last stage
    bound: float  # bytes of either that a rank may have at a time: half of training.hidden_states_gib
    portions: int  # in which the update takes the batch
    late: int  # of these, computed in the update, as the bound held no more before
    seconds: float  # on their way: host links, and the exchange between ranks

    @property
    def host(self) -> float:
        """Bytes of host memory that a rank takes."""
        return min(self.held, self.bound) + min(self.fetched, self.bound)


def payload_of(config: Config, roles: list[Role], where: Placement, work: Workload, machine: Machine) -> Payload | None:
    """None: the algorithm reads log-probs. Layouts are those of `roles`."""
    if not reads_hidden_states(config):
        return None
    layout, bound = roles[0].settings.layout, config.training.hidden_states_gib * GIB / 2
    span = len(layout.span(where.world, STUDENT))
    copies = 1 if layout.sequence_parallel else layout.tp  # of a token, on the ranks that share its vocabulary
    total = held = computed = arrival = 0.0
    portions = late = 0
    for teacher in config.teachers:
        pieces = list(_pieces(config, roles, teacher, where, work, machine))
        of_teacher = sum(piece.bytes for piece in pieces)
        of_rank = sum(piece.bytes / piece.ranks for piece in pieces)
        at_once = max(of_rank, of_teacher / (span // (layout.tp * layout.pp)))
        portions += (count := max(1, math.ceil(at_once / bound)))
        late += math.ceil(count * max(0.0, 1 - bound / len(config.teachers) / of_rank))
        total, held = total + of_teacher, held + of_rank
        computed += sum(piece.bytes / piece.ranks for piece in pieces if piece.arrival_seconds is None)
        arrival += sum(piece.arrival_seconds or 0.0 for piece in pieces)
    fetched = total * copies / (span // layout.pp)
    over_host = computed + held * copies + 2 * fetched  # down; up to be sent; down, and up again to be judged
    seconds = over_host / machine.host_bandwidth + arrival
    seconds += _exchange_seconds(max(held * copies, fetched), portions, where, machine)
    return Payload(total, held, fetched, bound, portions, late, seconds)


class _Piece(NamedTuple):
    """Hidden states of a teacher's tokens, by one of the models that judge them."""

    bytes: float
    ranks: int  # that share them
    arrival_seconds: float | None  # from servers; None: this job's GPUs compute them


def _pieces(
    config: Config, roles: list[Role], teacher: str, where: Placement, work: Workload, machine: Machine
) -> Iterator[_Piece]:
    share, item = 1 / len(config.teachers), ITEM[config.student.dtype]
    layouts = {name: role.settings.layout for role in roles[1:] for name in role.names}
    for who, judge in judges_of(config, teacher).items():
        size = work.response_tokens * share * width(judge) * item
        if layout := layouts.get(who):
            yield _Piece(size, len(layout.span(where.world, who)) // layout.pp, None)
            continue
        ranks, network = ranks_that_ask(judge, where.world), price.bandwidth(False, machine)
        seconds = size / ranks / network
        if judge.engine == "sglang":  # tells of prompts too
            said = int(work.lengths.sum()) * share * width(judge) * NUMBER_BYTES
            seconds = said / ranks * (1 / network + 1 / READ_BYTES_PER_S)
        yield _Piece(size, ranks, seconds)


def _exchange_seconds(sent: float, portions: int, where: Placement, machine: Machine) -> float:
    """All ranks to all ranks, `sent` bytes of each or to each, in rounds."""
    collective = Collective("all_to_all", tuple(range(where.world)))
    rounds = max(portions, math.ceil(sent / ROUND_BYTES))
    counts = Counts(collectives=Counter({collective: rounds}), sent_bytes=Counter({collective: sent}))
    return price.message_seconds(counts, machine)


def heads_bytes(config: Config, roles: list[Role], rank: int, world: int) -> float:
    """Of the LM heads that a rank holds beside the student's own: its shard of each, where it is of the last stage."""
    layout = roles[0].settings.layout
    span = layout.span(world, STUDENT)
    last = span[len(span) - len(span) // layout.pp :]
    if not reads_hidden_states(config) or rank not in last:
        return 0.0
    models = {judge.model: judge for teacher in config.teachers for judge in judges_of(config, teacher).values()}
    rows = {model: math.ceil(Architecture.read(model).vocab_size / layout.tp) for model in models}
    return sum(rows[model] * width(judge) * ITEM[config.student.dtype] for model, judge in models.items())


def told(payload: Payload) -> str:
    """For a person."""
    said = (
        f"Hidden states of {payload.bytes / GIB:.1f} GiB a step go from scorers to the student's last stage, "
        f"{payload.held / GIB:.2f} GiB from a rank and {payload.fetched / GIB:.2f} GiB to a rank, at most "
        f"{payload.bound / GIB:.2f} GiB of either at a time, in {payload.portions} portion(s): {payload.seconds:.1f} s "
        f"of the update."
    )
    if not payload.late:
        return said
    enough = math.ceil(2 * max(payload.held, payload.fetched) / GIB)
    return (
        f"{said} Of these, {payload.late} must be computed within the update; training.hidden_states_gib={enough} has "
        f"room for all before it."
    )
