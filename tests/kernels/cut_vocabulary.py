"""What two ranks compute for test_cut_vocabulary: the head whole on both, and cut over them."""

from __future__ import annotations

import torch
import torch.distributed as dist

from megatron_gopd.kernels import linear_log_softmax, linear_logprob

VOCABULARY = 131  # odd: the last rank's shard ends in a padding row


def compare() -> dict[str, dict[str, float]]:
    """{name: largest difference between the cut and the whole head}, and whether a bad target was refused."""
    group, rank = dist.group.WORLD, dist.get_rank()
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 16, dtype=torch.float64, generator=generator) for n in (40, VOCABULARY))
    targets = torch.arange(40) * 130 // 39  # tokens of both shards
    rows = -(-VOCABULARY // dist.get_world_size())
    shard = torch.cat([weight, weight.new_full((1, 16), 9.0)])[rank * rows : (rank + 1) * rows]
    here = rank * rows, min((rank + 1) * rows, VOCABULARY)

    whole = _values_and_gradients(hidden, weight, targets)
    cut = _values_and_gradients(hidden, shard, targets, vocab_range=here, group=group)
    dist.all_reduce(cut["hidden gradient"])
    whole["weight gradient"] = whole["weight gradient"][here[0] : here[1]]
    padding = cut["weight gradient"][here[1] - here[0] :]
    cut["weight gradient"] = cut["weight gradient"][: here[1] - here[0]]
    law = linear_log_softmax(hidden, shard, temperature=0.8, vocab_size=VOCABULARY, group=group)

    differences = {name: (cut[name] - whole[name]).abs().max() for name in whole}
    differences["whole distribution"] = (law - (hidden @ weight.T / 0.8).log_softmax(-1)).abs().max()
    differences["padding gradient"] = padding.abs().sum()
    refused = _refused(hidden, shard, targets.index_fill(0, torch.tensor([5]), VOCABULARY), here, group)
    return {name: _largest(value) for name, value in differences.items()} | {"refused": refused}


def _values_and_gradients(hidden, weight, targets, **cut) -> dict[str, torch.Tensor]:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logprobs, entropy = linear_logprob(hidden, weight, targets, temperature=0.8, **cut)
    mix = torch.linspace(-1, 1, len(targets), dtype=torch.float64)
    of_hidden, of_weight = torch.autograd.grad((mix * logprobs + mix.flip(0) * entropy).sum(), (hidden, weight))
    values = {"logprobs": logprobs.detach(), "entropy": entropy.detach()}
    return values | {"hidden gradient": of_hidden, "weight gradient": of_weight}


def _largest(value: torch.Tensor) -> float:
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return value.item()


def _refused(hidden, shard, targets, here, group) -> str:
    try:
        linear_logprob(hidden, shard, targets, vocab_range=here, group=group)
    except ValueError as error:
        return str(error)
    return ""
