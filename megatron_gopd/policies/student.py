"""The student: the one policy that learns."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from megatron_gopd import machine, objects
from megatron_gopd.config import Config
from megatron_gopd.data.packing import MicroBatch, Row
from megatron_gopd.data.trajectory import Trajectory
from megatron_gopd.errors import UserError
from megatron_gopd.mcore import weights
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.mcore.checkpoint import load_training_state, training_state, with_common_part
from megatron_gopd.mcore.forward import run
from megatron_gopd.mcore.levers import settle
from megatron_gopd.mcore.model import Model, build_model
from megatron_gopd.mcore.offload import Offloader
from megatron_gopd.mcore.optimizer import (
    announce_head,
    build_optimizer,
    learning_rate,
    more_follows,
    optimizer_tensors,
    wrap_for_training,
)
from megatron_gopd.mcore.receivers import hand_out, senders
from megatron_gopd.mcore.routing_replay import replay_routing
from megatron_gopd.objective import TokenRows
from megatron_gopd.policies import head_memory, scoring
from megatron_gopd.policies.micro_batches import my_micro_batches, my_rows, reports
from megatron_gopd.policies.payload import LOGPROBS, Head, LossFunction, Payload, Portion
from megatron_gopd.policies.token_table import TokenTable
from megatron_gopd.policies.update import Update, known_of_every_token, refuse_non_finite


class Student:
    """A Megatron model with its optimizer."""

    def __init__(self, config: Config):
        """Collective over all ranks. Raises UserError for a model or layout that cannot be used."""
        settings = self.settings = settle(config.student)
        self.config = config
        self._optimizer_steps, self._steps_a_batch = 0, config.algorithm.updates
        self._span = settings.layout.span(dist.get_world_size(), "student")
        self._away: Offloader | None = None
        self.model = build_model(  # None: no part on this rank
            settings.model, settings.layout, settings.dtype, fp8=settings.fp8, recompute=settings.recompute
        )
        if self.model is not None:
            weights.load(self.model, settings.model)
            if config.rollout.replay_routing:
                replay_routing(self.model.module)
            self._routers = {name: param.detach().float().clone() for name, param in _routers(self.model)}
            self._wrapped = wrap_for_training(self.model, config.optimizer, settings.overlap_communication)
            self._optimizer = build_optimizer(self.model, self._wrapped, config.optimizer)
            if settings.offload:  # from here on: servers on the same GPU start before the first step
                self._away = Offloader(lambda: optimizer_tensors(self._optimizer))
                self._release()

    @property
    def steps_done(self) -> int:
        """Batches it has learned from, each in one optimizer step or in algorithm.mini_batches."""
        return self._optimizer_steps // self._steps_a_batch

    def update(self, batch: list[Trajectory], loss: LossFunction, payload: Payload = LOGPROBS) -> Update:
        """One optimizer step on trajectories that hold what `loss` reads, or get it from `payload`. Collective.

        Raises:
            UserError: a log-prob, the loss or the gradient is not finite; the weights are then as before.
        """
        known = known_of_every_token(batch, self.config)
        told = payload.columns(loss, known)
        table = TokenTable([len(trajectory) for trajectory in batch], ["logprobs", "entropy", *told, "loss"])
        if self.model is not None:
            if self._away is not None:
                self._wrapped.restore_grad_buffers(synchronize=False)
            if self.settings.offload == "ahead":
                self._away.fetch()
            self._wrapped.zero_grad_buffer()
            self._optimizer.zero_grad()
        for portion in payload.portions(batch):
            self._learn(batch, portion, loss, known, table)
        columns = table.gather()
        refuse_non_finite(columns["logprobs"], batch)
        payload.fill(batch, columns)
        value = math.fsum(float(column.sum(dtype=np.float64)) for column in columns["loss"])
        norm, lr = self._step()
        metrics = {name: columns[name] for name in told}
        return Update(norm, lr, value, columns["logprobs"], columns["entropy"], metrics, self._router_drift())

    @functools.cached_property
    def _kept_bytes(self) -> int | None:
        """Of a chunk, by the LM head. Collective; asked in the first update, when every model lies where it stays."""
        return head_memory.of_this_job(self.config.training)

    def _learn(
        self, batch: list[Trajectory], portion: Portion, loss: LossFunction, known: TokenRows, table: TokenTable
    ) -> None:
        """Gradients of a portion of the batch, added to those before it."""
        kept_bytes = self._kept_bytes  # collective, so before ranks without a part of the student leave
        rows = self._rows(batch, portion.rows)
        if self.model is None:
            portion.prepare(None, [], table)
            return
        training, model = self.config.training, self.model
        micro_batches = my_micro_batches(model, rows, training.max_tokens_per_micro_batch, portion.rows)
        asked = Head(model, self.config.rollout.temperature, training.logprob == "naive", kept_bytes)
        portion.prepare(asked, micro_batches, table)

        def head(hidden: Tensor, micro_batch: MicroBatch) -> Tensor:
            of_rows = known.select(table.indices(micro_batch), hidden.device)
            judged = portion.judge(loss, asked, hidden, micro_batch, of_rows)
            if reports(model):
                each = judged.loss.detach() / max(1, len(micro_batch.targets))
                table.put(micro_batch, judged.columns | {"loss": each.expand(len(micro_batch.targets))})
            if self.settings.overlap_communication and not asked.naive:
                announce_head(model)
            return judged.loss

        with contextlib.nullcontext() if portion.last else more_follows(model, self._wrapped):
            run(model, micro_batches, head, train=True, module=self._wrapped, gather=asked.naive)

    def logprobs(self, batch: list[Trajectory]) -> list[np.ndarray]:
        """Log-prob of every response token under the weights of now: [response] float32 a trajectory. Collective."""
        return self.score(self._rows(batch), self.config.rollout.temperature)

    def score(self, rows: Sequence[Row], temperature: float) -> list[np.ndarray]:
        """Log-prob of every response token under the weights of now: [response] float32 a row. Collective."""
        training = self.config.training
        budget, naive = training.max_tokens_per_micro_batch, training.logprob == "naive"
        return scoring.score(self.model, rows, temperature=temperature, max_tokens=budget, naive=naive)[0]

    def export(self, receivers: Collection[int] | None = None) -> Iterator[tuple[str, Tensor]]:
        """(Hugging Face name, tensor) of the current weights. Collective; draw the whole iterator on every rank.

        `receivers`: the ranks that get the tensors, and others may not; None: all get them.
        """
        if len(self._span) == dist.get_world_size():
            return weights.export(self.model, receivers)
        first = self._span[0]
        mine = weights.export(self.model, [first]) if self.model is not None else None
        return _beyond_the_span(mine, first, range(dist.get_world_size()) if receivers is None else receivers)

    @functools.cached_property
    def senders(self) -> list[int]:
        """See mcore.receivers.senders. Collective."""
        return senders(self.model.groups if self.model is not None else None)

    def export_part(self) -> Iterator[tuple[str, Tensor]]:
        """What this rank, if it is one of `senders`, sends of the current weights, or what it draws along with one.

        Draw the whole iterator on every rank; ranks wait for those only that put tensors together with them.
        """
        of_all = self.senders
        return weights.export_part(self.model, of_all) if self.model is not None else iter(())

    @contextlib.contextmanager
    def state(self, *, loading: bool = False) -> Iterator[dict]:
        """Weights and optimizer state of this rank as sharded tensors, on the device within the block. Collective."""
        with self._away.resident() if self._away is not None else contextlib.nullcontext():
            mine = training_state(self.model, self._optimizer, loading=loading) if self.model is not None else {}
            yield mine if loading else with_common_part(mine, self._span[0])

    def load_state(self, loaded: dict, steps_done: int) -> None:
        """Continue where `loaded`, read for state(loading=True), was taken: after step `steps_done`. Collective."""
        if self.model is not None:
            load_training_state(self.model, self._optimizer, loaded)
        self._optimizer_steps = steps_done * self._steps_a_batch

    def _rows(self, batch: list[Trajectory], chosen: Sequence[int] | None = None) -> list[Row]:
        """With the experts to replay in those that this rank computes, of all or of the `chosen`. Collective."""
        rows = [Row(each.prompt.student_tokens, each.response_tokens) for each in batch]
        if all(each.routed_experts is None for each in batch):
            return rows
        budget = self.config.training.max_tokens_per_micro_batch
        mine = my_rows(self.model, rows, budget, chosen) if self.model is not None else []
        told = objects.fetch([each.routed_experts and each.routed_experts.chosen for each in batch], chain(*mine))
        return [replace(row, routed_experts=told.get(number)) for number, row in enumerate(rows)]

    def _step(self) -> tuple[float, float]:
        """The optimizer step, unless the gradient is not finite; returns its norm and the learning rate."""
        lr = learning_rate(self.steps_done + 1, self.config.run.steps, self.config.optimizer)
        norm = 0.0
        if self.model is not None:
            if self._away is not None:
                self._away.restore()
            self._optimizer.prepare_grads()
            norm = self._optimizer.get_grad_norm()
        norm = _highest(norm)  # ranks without a part of the student learn it from the others
        if not math.isfinite(norm):
            raise UserError(
                f"step {self.steps_done + 1}: the gradient norm is not finite; lower optimizer.lr, or look at "
                f"what the steps before it learned from: megatron-gopd view"
            )
        if self.model is not None:
            self._apply(lr)
        self._optimizer_steps += 1
        return norm, lr

    def _apply(self, lr: float) -> None:
        """Under `offload`, moments and master weights wait in host memory between steps; gradients are freed."""
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        if self._away is not None:
            self._release()

    def _release(self) -> None:
        """Beside what is computed next: Megatron would wait for all of the GPU, copies included."""
        self._away.release()
        self._wrapped.offload_grad_buffers(synchronize=False, empty_cache=False)

    def _router_drift(self) -> float | None:
        """How far the routers of all layers have moved since the start; None for a dense student. Collective."""
        if Architecture.read(self.config.student.model).experts is None:
            return None
        squares = torch.zeros(2, device=machine.device())  # of the change, the start
        if self.model is not None and self.model.groups.tp_dp_cp.rank() == 0:  # each stage speaks once
            for name, param in _routers(self.model):
                start = self._routers[name]
                squares += torch.stack([(param.detach().float() - start).square().sum(), start.square().sum()])
        squares = squares.cpu()
        dist.all_reduce(squares)
        return math.sqrt(squares[0] / squares[1])


def _routers(model: Model) -> Iterator[tuple[str, Tensor]]:
    return ((name, param) for name, param in model.module.named_parameters() if name.endswith(".router.weight"))


def _beyond_the_span(
    tensors: Iterator[tuple[str, Tensor]] | None, source: int, receivers: Collection[int]
) -> Iterator[tuple[str, Tensor]]:
    """Hand what rank `source` draws to `receivers`; the other ranks of its span must draw along."""
    while True:
        drawn = next(tensors, None) if tensors is not None else None
        about = [None if drawn is None else (drawn[0], drawn[1].shape, drawn[1].dtype)]
        dist.broadcast_object_list(about, src=source)
        if about[0] is None:
            return
        name, shape, dtype = about[0]
        if dist.get_rank() == source:
            tensor = drawn[1].contiguous()
        else:
            tensor = torch.empty(shape if dist.get_rank() in receivers else 0, dtype=dtype, device=machine.device())
        hand_out(tensor, source, dist.group.WORLD, list(receivers))
        yield name, tensor


def _highest(value: float) -> float:
    """The maximum over all ranks; infinite where it is not a number on one of them."""
    value = float(value) if math.isfinite(value) else math.inf
    tensor = torch.tensor(value)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor.item()
