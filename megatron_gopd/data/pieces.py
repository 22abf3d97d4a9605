"""The text of each token of a response."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BROKEN = "\ufffd"  # what a decoder writes for bytes that are no character
LONGEST = 4  # bytes of a character in UTF-8, so tokens that may share one


class Pieces:
    """Cuts a decoded sequence at its tokens. One decoding for each id that it has not met yet."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        # after a token of its own, since decoders strip the blank of a first one
        self._before: list[int] = tokenizer.encode("a", add_special_tokens=False)
        self._cut = len(self._decode(self._before))
        self._known: dict[int, str] = {}

    def of(self, ids: Sequence[int]) -> list[str]:
        """The text of each token; end to end they are the text. Of tokens that share a character, the last has it.

        Bytes that are no character are one U+FFFD a token, where the whole text may have fewer.
        """
        ids = [int(each) for each in ids]
        pieces = [self._piece(each) for each in ids]
        at = 0
        while at < len(ids):
            shared = self._shared(ids[at : at + LONGEST]) if BROKEN in pieces[at] else None
            if shared is None:
                at += 1
                continue
            count, text = shared
            pieces[at : at + count] = [""] * (count - 1) + [text]
            at += count
        return pieces

    def _shared(self, ids: list[int]) -> tuple[int, str] | None:
        """How many of the first tokens are whole characters together, and which; None: they are not."""
        for count in range(2, len(ids) + 1):
            text = self._after(ids[:count])
            if BROKEN not in text:
                return count, text
        return None

    def _piece(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = self._after([token])
        return self._known[token]

    def _after(self, ids: list[int]) -> str:
        return self._decode([*self._before, *ids])[self._cut :]

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
