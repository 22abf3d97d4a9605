"""What the ranks of test_distribution_ranks compute: three heads, cut over groups of several sizes."""

from __future__ import annotations

import dataclasses

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_gopd.kernels import backend, chunks, linear_distribution_loss, naive_distribution_loss
from tests.kernels.distribution_case import TEMPERATURE, Case, rows_of, values_of
from tests.kernels.group_on_ranks import _one_after_another, _relative, groups_of

PADDED = 1208  # rows of the student's head, over all ranks
CASE = Case(48, (1201, 1210, 1198), (32, 16, 24), 1190, dtype=torch.float32)  # the last shards differ in length
BEYOND = dataclasses.replace(CASE, rows=(908, 904, 910), shared=890)  # of four shards the last shares no id


def in_a_group(case: Case, group, mode: str, *, slices=None, exact=None, naive=False) -> dict[str, Tensor]:
    """The values of one loss and both gradients, whole, on every rank.

    slices: the rows each rank holds under sequence parallelism.
    """
    ranks, rank = (1, 0) if group is None else (group.size(), dist.get_rank(group))
    hidden, weight, targets, target = case.tensors()
    width = PADDED // ranks
    first, last = rank * width, (rank + 1) * width if rank < ranks - 1 else None
    start = sum(slices[:rank]) if slices else 0
    mine = slice(start, start + slices[rank]) if slices else slice(None)
    shards = {}
    for name, head in target.heads.items():
        rows = torch.cat([head.weight[first:last], head.weight.new_full((3, head.weight.shape[1]), torch.nan)])
        shards[name] = dataclasses.replace(head, hidden=head.hidden[mine], weight=rows, rows=len(rows) - 3)
    target = dataclasses.replace(target, **shards)
    shard = torch.cat([weight, weight.new_full((PADDED - len(weight), weight.shape[1]), torch.nan)])[first:last]
    local, shard = hidden[mine].clone().requires_grad_(), shard.clone().requires_grad_()
    where = {"vocab_range": (first, max(first, min(first + width, len(weight)))), "group": group}
    run = naive_distribution_loss
    if not naive:
        run, where = linear_distribution_loss, where | {"rows_per_rank": slices, "exact": exact, "mode": mode}
    found = run(local, shard, targets, case.loss, rows_of(case.tokens), target, temperature=TEMPERATURE, **where)
    found.loss.backward()
    grad_hidden = local.grad.float()
    if slices:
        grad_hidden = _one_after_another(grad_hidden, slices, group)
    elif group is not None:
        dist.all_reduce(grad_hidden, group=group)
    grad_weight = _one_after_another(shard.grad.float(), [width] * ranks, group)
    gradients = {"hidden gradient": grad_hidden, "weight gradient": grad_weight}
    return values_of(found) | found.metrics | {"loss": found.loss.detach()} | gradients


def exact_over_sizes(backends: list[str]) -> dict[str, list[str]]:
    """{case, ranks: what has other bits in exact mode than on one rank}, on rank 0."""
    groups, found = groups_of([1, 2, 4]), {}
    chunks.TOKENS, chunks.KEPT_BYTES = 96, 64 * 2 * 2 * PADDED  # of a shard alone more tokens would fit
    for name in backends:
        if name == "torch":
            backend._cpp = lambda: None
        for dtype, mode, sliced, divergence in [
            (torch.float32, "one_pass", False, "reverse_kl"),
            (torch.float32, "recompute", True, "forward_kl"),
            (torch.bfloat16, "one_pass", True, "reverse_kl"),
            (torch.bfloat16, "one_pass", False, "forward_kl"),
            (torch.bfloat16, "recompute", True, "reverse_kl"),
        ]:
            case, alone = dataclasses.replace(CASE, tokens=192, dtype=dtype, divergence=divergence), None
            for ranks, group in groups.items():
                if dist.get_rank() < ranks:
                    slices = [192 // ranks] * ranks if sliced else None
                    run = in_a_group(case, group, mode, slices=slices, exact=8)
                    alone = alone or run
                    different = [what for what in run if not torch.equal(run[what], alone[what])]
                    found[f"{name}, {dtype}, {mode}, {sliced}, {divergence}, {ranks}"] = different
    return found


def cut_and_whole(slices: list[list[int] | None]) -> dict[str, dict[str, float]]:
    """{case: {what: largest difference between the cut and the whole heads, over the largest value}}."""
    chunks.TOKENS, found = 16, {}
    for name, case in {"last shards differ": CASE, "a shard beyond": BEYOND}.items():
        for divergence in ("reverse_kl", "forward_kl"):
            for cut in slices:
                tokens = 48 if cut is None else sum(cut)
                one = dataclasses.replace(case, tokens=tokens, divergence=divergence, clamp=0.5)
                whole = in_a_group(one, None, "one_pass")
                runs = {mode: in_a_group(one, dist.group.WORLD, mode, slices=cut) for mode in ("one_pass", "recompute")}
                if cut is None:
                    runs["naive"] = in_a_group(one, dist.group.WORLD, "", naive=True)
                for mode, values in runs.items():
                    differences = {what: _relative(values[what], whole[what]) for what in whole}
                    found[f"{name}, {divergence}, {cut}, {mode}"] = differences
    return found
