"""An objective of the user's own, checked wherever it is called: what is wrong is told with its file and line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection

import torch
from torch import Tensor

from megatron_gopd.config.algorithm import AlgorithmSection
from megatron_gopd.config.own_code import OwnCode
from megatron_gopd.errors import UserError
from megatron_gopd.objective.token_loss import TokenLoss, TokenRows

# names of columns that an update has besides
TAKEN = ("logprobs", "entropy", "loss", "teacher_logprobs", "reference_logprobs", "lambda_limit", "disagreement")
TOKENS = 64  # that an objective is tried on


def own_loss(code: OwnCode, keys: AlgorithmSection) -> Callable[[Tensor, Tensor, TokenRows], TokenLoss]:
    """Build the `token_loss(logprobs, entropy, rows)` that `code` names, with checks around it.

    Raises UserError, FILE:LINE in front: here and in every call, what the file raises; in a call, a result that is no
    TokenLoss of these tokens, or not finite.
    """
    build = code.load()
    with code.errors():
        token_loss = build(keys) if inspect.signature(build).parameters else build()
    if not callable(token_loss):
        raise UserError(f"{code.place_of(build)}: {code.name} returned {token_loss!r}, and a token loss is a function")
    place = f"{code.place_of(token_loss)}: {getattr(token_loss, '__name__', code.name)}"

    def checked(logprobs: Tensor, entropy: Tensor, rows: TokenRows) -> TokenLoss:
        if not len(logprobs):  # asked for its metrics' names; means and maxima of nothing are no concern of its author
            return _nothing(checked(*_tokens({name for name, column in vars(rows).items() if column is not None})))
        with code.errors():
            result = token_loss(logprobs, entropy, rows)
        if wrong := _wrong(result, len(logprobs)):
            raise UserError(f"{place} {wrong}")
        return _plain(result, logprobs)

    return checked


def try_out(code: OwnCode, keys: AlgorithmSection, columns: Collection[str]) -> None:
    """Call the objective on a few made-up tokens, before anything is loaded. `columns` of TokenRows will be there.

    Raises UserError as own_loss; and for a loss that is not a sum over tokens, which would depend on how a batch is
    cut, or that has no gradient.
    """
    token_loss = own_loss(code, keys)
    halves = slice(0, TOKENS // 2), slice(TOKENS // 2, TOKENS)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        logprobs, entropy, rows = _tokens(columns)
        whole = token_loss(logprobs, entropy, rows)
        parts = [token_loss(logprobs[half], entropy[half], rows.select(half)) for half in halves]
    slopes = torch.cat([part.dloss_dlogprobs for part in parts])
    if not (_close(whole.loss, sum(part.loss for part in parts)) and _close(whole.dloss_dlogprobs, slopes)):
        raise UserError(
            f"{code.place_of(code.load())}: the loss of {code.name} is not a sum over tokens: of {TOKENS} tokens it is "
            f"{whole.loss:.4g}, of their halves {parts[0].loss:.4g} and {parts[1].loss:.4g}. Multiply each token by "
            f"rows.weights and add up: they make the sum a mean over the whole batch"
        )
    if not (whole.dloss_dlogprobs.any() or (whole.dloss_dentropy is not None and whole.dloss_dentropy.any())):
        raise UserError(f"{code.place_of(code.load())}: the gradient of {code.name} is 0: nothing would be learned")


def _wrong(result: object, tokens: int) -> str | None:
    """What is wrong with it, in words; None: nothing."""
    if not isinstance(result, TokenLoss):
        return f"returned {type(result).__name__}, where megatron_gopd.objective.TokenLoss is expected"
    loss, logprob_slopes, entropy_slopes, metrics = result
    if logprob_slopes is None and entropy_slopes is None:
        return "returned no gradient: dloss_dlogprobs and dloss_dentropy are None"
    if not isinstance(metrics, dict):
        return f"returned metrics of type {type(metrics).__name__}, where {{name: [tokens]}} is expected"
    if taken := [name for name in metrics if name in TAKEN]:
        return f"returned a metric {taken[0]!r}, which means something else already: give it another name"
    columns = {"loss": (loss, ()), "dloss_dlogprobs": (logprob_slopes, (tokens,))}
    columns |= {"dloss_dentropy": (entropy_slopes, (tokens,))}
    columns |= {f"metrics[{name!r}]": (column, (tokens,)) for name, column in metrics.items()}
    for name, (column, shape) in columns.items():
        if column is None and name.startswith("dloss"):
            continue
        if not isinstance(column, Tensor) or tuple(column.shape) != shape:
            found = list(column.shape) if isinstance(column, Tensor) else type(column).__name__
            return f"returned {name} of shape {found}, where {list(shape)} is expected, of {tokens} tokens"
        if not torch.isfinite(column).all():
            return f"returned {name} with {column[~torch.isfinite(column)].flatten()[0].item()} in it"
    return None


def _plain(result: TokenLoss, like: Tensor) -> TokenLoss:
    """Detached, and in the type of the log-probs; a gradient of the entropy alone gets the zeros of the other."""
    slopes = like.new_zeros(len(like)) if result.dloss_dlogprobs is None else result.dloss_dlogprobs
    entropy = None if result.dloss_dentropy is None else result.dloss_dentropy.detach().to(like)
    metrics = {name: column.detach().to(like) for name, column in result.metrics.items()}
    return TokenLoss(result.loss.detach().to(like), slopes.detach().to(like), entropy, metrics)


def _tokens(columns: Collection[str]) -> tuple[Tensor, Tensor, TokenRows]:
    """Tokens that no model made, likely and unlikely, sure and unsure: log-probs and entropy of the student, and rows
    with these columns."""
    draw = torch.Generator().manual_seed(0)
    logprobs = torch.empty(TOKENS).exponential_(0.4, generator=draw).clamp(1e-3, 12.0).neg()
    entropy = torch.rand(TOKENS, generator=draw) * 6

    def near() -> Tensor:
        return (logprobs + torch.randn(TOKENS, generator=draw).clamp(-3, 3)).clamp(max=-1e-3)

    known = {name: near() for name in sorted(columns)} | {"behaviour_logprobs": logprobs - 0.01}
    known["weights"] = torch.full((TOKENS,), 1 / TOKENS, dtype=torch.float64)
    if "outcome" in columns:
        known["outcome"] = torch.randn(TOKENS, generator=draw)
    if "lambda_" in columns:
        known["lambda_"] = torch.full((TOKENS,), 1.25)
    return logprobs, entropy, TokenRows(**known)


def _nothing(result: TokenLoss) -> TokenLoss:
    """The same of no tokens."""
    metrics = {name: column[:0] for name, column in result.metrics.items()}
    slopes = result.dloss_dentropy
    return TokenLoss(result.loss * 0, result.dloss_dlogprobs[:0], None if slopes is None else slopes[:0], metrics)


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one, other, rtol=1e-3, atol=1e-6)
