"""What the ranks of test_groups compute: one head, cut over every size of group."""

from __future__ import annotations

import torch
import torch.distributed as dist

from megatron_gopd.kernels import backend, chunks, linear_logprob, linear_token_loss
from megatron_gopd.objective import TokenLoss, TokenRows

CHUNK = 16
TOKENS, HIDDEN, VOCABULARY, PADDED = 48, 32, 1201, 1224  # the last shard ends in padding


def inputs(dtype: torch.dtype, tokens: int = TOKENS):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, HIDDEN, generator=generator).to(dtype)
    weight = (0.4 * torch.randn(PADDED, HIDDEN, generator=generator)).to(dtype)
    return hidden, weight, torch.randint(0, VOCABULARY, (tokens,), generator=generator)


def token_loss(logprobs, entropy, rows):
    """A loss with a gradient through both, and one metric."""
    slope = rows.weights * (logprobs + 3)
    return TokenLoss((slope - 0.1 * entropy).sum(), slope, torch.full_like(entropy, -0.1), {"slope": slope})


def rows_of(tokens: int) -> TokenRows:
    return TokenRows(torch.linspace(-1, 2, tokens), torch.zeros(tokens), torch.zeros(tokens))


def in_a_group(group, dtype, mode, *, slices=None, exact=None, tokens=TOKENS) -> dict[str, torch.Tensor]:
    """One linear_token_loss and its gradients: log-probs, entropy, and both gradients, whole, on every rank.

    slices: the rows each rank holds under sequence parallelism.
    """
    ranks, rank = (1, 0) if group is None else (group.size(), dist.get_rank(group))
    hidden, weight, targets = inputs(dtype, tokens)
    width = PADDED // ranks
    mine = weight[rank * width : (rank + 1) * width].clone().requires_grad_()
    first = sum(slices[:rank]) if slices else 0
    local = (hidden[first : first + slices[rank]] if slices else hidden).clone().requires_grad_()
    here = (rank * width, max(rank * width, min((rank + 1) * width, VOCABULARY)))
    where = {"vocab_range": here, "group": group, "rows_per_rank": slices, "exact": exact, "temperature": 0.8}
    result = linear_token_loss(local, mine, targets, token_loss, rows_of(tokens), mode=mode, **where)
    result.loss.backward()
    grad_hidden = local.grad.float()
    if slices:
        grad_hidden = _one_after_another(grad_hidden, slices, group)
    elif group is not None:
        dist.all_reduce(grad_hidden, group=group)
    grad_weight = _one_after_another(mine.grad.float(), [width] * ranks, group)
    values = {"logprobs": result.logprobs, "entropy": result.entropy, "loss": result.loss.detach()}
    return values | {"hidden gradient": grad_hidden, "weight gradient": grad_weight}


def _one_after_another(mine, lengths, group):
    if group is None:
        return mine
    parts = [None] * len(lengths)
    dist.all_gather_object(parts, mine, group=group)
    return torch.cat(parts)


def groups_of(sizes) -> dict[int, object]:
    """A group of the first n ranks for every n; on a rank outside it, a placeholder."""
    return {size: dist.new_group(list(range(size))) if size > 1 else None for size in sizes}


def exact_over_sizes(backends: list[str], size: int = 8) -> dict:
    """{(backend, dtype, mode, sequence parallel, ranks): in_a_group in exact mode}, on rank 0."""
    groups, results, tokens = groups_of([1, 2, 4, 8]), {}, 192
    chunks.TOKENS, chunks.KEPT_BYTES = 96, 64 * 2 * PADDED  # of a shard alone more tokens would fit
    for name in backends:
        if name == "torch":
            backend._cpp = lambda: None
        for dtype in ("float32", "bfloat16"):
            for mode in ("one_pass", "recompute"):
                for sliced in (False, True):
                    for ranks, group in groups.items():
                        if dist.get_rank() < ranks:
                            slices = [tokens // ranks] * ranks if sliced else None
                            keys = {"slices": slices, "exact": size, "tokens": tokens}
                            found = in_a_group(group, getattr(torch, dtype), mode, **keys)
                            results[name, dtype, mode, sliced, ranks] = found
    return results


def uneven_slices(cases: list[list[int]]) -> list[dict[str, float]]:
    """{what: largest difference between uneven slices and one rank, over the largest value}, of every case and mode."""
    chunks.TOKENS, differences = 16, []
    for slices in cases:
        for mode in ("one_pass", "recompute"):
            cut = in_a_group(dist.group.WORLD, torch.float32, mode, slices=slices, tokens=sum(slices))
            whole = in_a_group(None, torch.float32, mode, tokens=sum(slices))
            differences.append({what: _relative(cut[what], whole[what]) for what in whole})
    return differences


def _relative(found, expected) -> float:
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1)).item() if found.numel() else 0.0


def bytes_moved(tokens: int) -> dict[str, int]:
    """Bytes every collective of one fused forward and backward pass receives on this rank, by its name, and the most
    numbers one call of it gives."""
    chunks.TOKENS, moved = CHUNK, {}

    def counting(name, real):
        def call(output, input, *args, **kwargs):
            moved[name] = moved.get(name, 0) + output.numel() * output.element_size()
            moved[f"{name} at once"] = max(moved.get(f"{name} at once", 0), output.numel())
            return real(output, input, *args, **kwargs)

        return call

    for name in ("all_gather_into_tensor", "reduce_scatter_tensor", "all_to_all_single"):
        setattr(dist, name, counting(name, getattr(dist, name)))
    dist.all_reduce = None  # nothing may be summed whole
    ranks = dist.get_world_size()
    hidden, weight, targets = inputs(torch.bfloat16, tokens)
    width, rank = PADDED // ranks, dist.get_rank()
    local = hidden.chunk(ranks)[rank].clone().requires_grad_()
    here = (rank * width, min((rank + 1) * width, VOCABULARY))
    where = {"vocab_range": here, "group": dist.group.WORLD, "rows_per_rank": [tokens // ranks] * ranks}
    shard = weight[rank * width : (rank + 1) * width].clone().requires_grad_()
    linear_token_loss(local, shard, targets, token_loss, rows_of(tokens), **where).loss.backward()
    return moved


def refusal_of_nan() -> list[str]:
    """What each rank says of a slice that holds a NaN, one rank's alone."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    hidden, weight, targets = inputs(torch.float32)
    hidden[TOKENS // ranks + 2, 3] = torch.nan
    width = PADDED // ranks
    here = (rank * width, min((rank + 1) * width, VOCABULARY))
    where = {"vocab_range": here, "group": dist.group.WORLD, "rows_per_rank": [TOKENS // ranks] * ranks}
    said = [None] * ranks
    try:
        linear_logprob(hidden.chunk(ranks)[rank], weight[rank * width : (rank + 1) * width], targets, **where)
        message = "nothing"
    except ValueError as error:
        message = str(error)
    dist.all_gather_object(said, message)
    return said
