"""What servers reply, checked in one place before anything is computed from it.

A reply is of the shape and the types that are told here, or refused; so are its numbers. What is checked beyond, where
there is more to say of it: that log-probs are finite (policies/scorers.py, rollout/trajectories.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, ValidationError

ROUNDING = 1e-3  # nats that a log-prob may lie above 0
Item = TypeVar("Item")
Many = Annotated[list[Item], FailFast()]  # pydantic keeps a kilobyte for every wrong item of a list of three bytes each
Entry = tuple[float | None, int, object]  # log-prob, id, text


class Reply(BaseModel):
    """Keys that are not named here are of no interest."""

    model_config = ConfigDict(strict=True, extra="ignore")


class Finish(Reply):
    type: Literal["stop", "length", "abort"]  # abort: cut short by the server
    message: str | None = None
    status_code: int | None = None


class Version(Reply):
    version: str | int
    end: int | None = None  # of its tokens among the response's, exclusive; None: of all


class AboutSampled(Reply):
    finish_reason: Finish
    output_token_logprobs: Many[Entry] = Field(default_factory=list)
    weight_version: str | int = "default"
    weight_versions: Annotated[list[Version] | None, FailFast()] = None  # of the tokens, in order
    routed_experts: str | None = None  # see routed_experts.py


class Sampled(Reply):
    """SGLang's to /generate."""

    output_ids: Many[int] = Field(default_factory=list)
    meta_info: AboutSampled


class AboutScored(Reply):
    model_config = ConfigDict(strict=True, extra="allow")  # the most likely tokens as arrays: top_logprobs.py

    finish_reason: Finish
    input_token_logprobs: Many[Entry] = Field(default_factory=list)
    input_top_logprobs: Annotated[list[Annotated[list[Entry] | None, FailFast()]] | None, FailFast()] = None


class Scored(Reply):
    """SGLang's to /generate, of given tokens."""

    meta_info: AboutScored


class Logprobs(Reply):
    """Our scorer's to /score."""

    logprobs: Many[float]


class LogprobRows(Reply):
    """Our scorer's to /support."""

    logprobs: Many[Many[float]]


def _texts(named: dict[str, object]) -> dict[str, object]:
    for name in [name for name, value in named.items() if not isinstance(value, str)][:1]:
        raise ValueError(f"{name!r:.200} is no text")
    return named


class OfRank(Reply):
    checksums: Annotated[dict[str, Any], AfterValidator(_texts)]


class Checksums(Reply):
    """SGLang's to /weights_checker, of one rank."""

    ranks: list[OfRank] = Field(min_length=1, max_length=1)


Kind = TypeVar("Kind", bound=Reply)


class NoJsonError(ValueError):
    """A reply that may have been cut short."""


def read(kind: type[Kind], said: bytes) -> Kind:
    """Raises ValueError: names the place in the reply, and the value there; NoJsonError: it is no JSON."""
    try:
        return kind.model_validate_json(said)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            raise NoJsonError(f"{said[:300].decode(errors='replace')!r}, which is not JSON") from None
        raise ValueError(
            f"{'.'.join(map(str, first['loc'])) or 'a reply'} = {first['input']!r:.200}: {first['msg']}"
        ) from None


def sampled_logprobs(reply: Sampled, most: int | None, vocab_size: int | None) -> np.ndarray:
    """[response] float32. Raises ValueError: more than the `most` tokens that were asked for, or none; ids that the
    model has not; log-probs that none can be, or of other tokens."""
    entries, ids = reply.meta_info.output_token_logprobs, reply.output_ids
    if [entry[1] for entry in entries] != ids:
        raise ValueError(f"log-probs of {len(entries)} tokens that are not the response's {len(ids)}")
    if not ids or (most is not None and len(ids) > most):
        raise ValueError(f"{len(ids)} tokens, where 1 to {most} were asked for")
    known_ids(np.array(ids, dtype=object), vocab_size)
    return possible(numbers([entry[0] for entry in entries]))


def sampled_versions(reply: Sampled) -> list[tuple[str, int]]:
    """(weights, how many of the response's tokens they sampled), in order. Raises ValueError: these are not all."""
    about, tokens = reply.meta_info, len(reply.output_ids)
    spans, begin = [], 0
    for each in about.weight_versions or [Version(version=about.weight_version)]:
        end = tokens if each.end is None else each.end
        if end < begin:
            raise ValueError(f"weights {each.version!r} of tokens {begin} to {end}")
        spans.append((str(each.version), end - begin))
        begin = end
    if begin != tokens:
        raise ValueError(f"weights of {begin} tokens, of a response of {tokens}")
    return [span for span in spans if span[1]]


def scored_logprobs(entries: Sequence[Entry], asked: Sequence[int], vocab_size: int | None) -> np.ndarray:
    """[asked] float32 log-probs. Raises ValueError: they are not of the tokens `asked` about, or none of a token."""
    given = [entry[0] for entry in entries]
    if len(given) != len(asked) or None in given:
        raise ValueError(f"{len(given) - given.count(None)} log-probs for {len(asked)} tokens; none can be made up")
    for place, (entry, token) in enumerate(zip(entries, asked, strict=True)):
        # SGLang names the last of the vocabulary 0 here
        if entry[1] != token and not (entry[1] == 0 and token == (vocab_size or 0) - 1):
            raise ValueError(f"the log-prob of token id {entry[1]} in place {place}, where {token} was asked about")
    return finite(numbers(given))


def given_logprobs(reply: Logprobs, tokens: int) -> np.ndarray:
    """[tokens] float32. Raises ValueError: others than were asked for, or what no log-prob can be."""
    if len(reply.logprobs) != tokens:
        raise ValueError(f"{len(reply.logprobs)} log-probs for {tokens} tokens")
    return finite(numbers(reply.logprobs))


def given_rows(reply: LogprobRows, tokens: int, width: int) -> np.ndarray:
    """[tokens, width] float32. Raises ValueError: as given_logprobs."""
    if [len(row) for row in reply.logprobs] != [width] * tokens:
        widths = sorted({len(row) for row in reply.logprobs})
        raise ValueError(f"log-probs {[len(reply.logprobs), *widths]} for tokens {[tokens, width]}")
    return finite(numbers(reply.logprobs))


def numbers(values: Sequence) -> np.ndarray:
    """The same shape, float32; None, as JSON has no NaN, is NaN."""
    with np.errstate(over="ignore"):  # becomes infinite
        return np.array(values, dtype=np.float32)


def finite(logprobs: np.ndarray) -> np.ndarray:
    """The same. Raises ValueError: one is not finite, or above 0."""
    for place in np.argwhere(~np.isfinite(logprobs))[:1]:
        raise ValueError(f"log-prob {logprobs[tuple(place)]} in place {place[0]}")
    return possible(logprobs)


def possible(logprobs: np.ndarray) -> np.ndarray:
    """The same, [tokens] or [tokens, k]. Raises ValueError: one is above 0, by more than rounding."""
    for place in np.argwhere(logprobs > ROUNDING)[:1]:
        raise ValueError(f"log-prob {logprobs[tuple(place)]:g} in place {place[0]}: no probability is above 1")
    return logprobs


def known_ids(ids: np.ndarray, vocab_size: int | None) -> None:
    """[tokens] or [tokens, k]. Raises ValueError: one is no row of the vocabulary; None: it is not known."""
    most = 2**31 if vocab_size is None else vocab_size
    for place in np.argwhere((ids < 0) | (ids >= most))[:1]:
        raise ValueError(f"token id {ids[tuple(place)]} in place {place[0]}, outside the vocabulary of {most}")
