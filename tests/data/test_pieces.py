"""The text of each token."""

from __future__ import annotations

import pytest

from megatron_gopd.data.pieces import Pieces
from tests.chat_models import tokenizer


@pytest.fixture(scope="module")
def pieces():
    return Pieces(tokenizer())


@pytest.mark.parametrize(
    "text",
    [
        "What is 3 plus 4? The answer is 7.<|im_end|>",
        "世界 und é, 🙂",
        " two  blanks\n\tand a tab ",
        "<script>alert(1)</script>",
        "\u202eleft\x1b[31m",
    ],
)
def test_end_to_end_they_are_the_text(pieces, text):
    ids = tokenizer().encode(text, add_special_tokens=False)
    found = pieces.of(ids)
    assert len(found) == len(ids)
    assert "".join(found) == text


def test_of_tokens_that_share_a_character_the_last_has_it(pieces):
    ids = tokenizer().encode("é", add_special_tokens=False)
    assert len(ids) == 2
    assert pieces.of([*ids, *ids]) == ["", "é", "", "é"]


def test_bytes_that_are_no_character_stay_apart(pieces):
    first = tokenizer().encode("é", add_special_tokens=False)[0]
    a, b = tokenizer().encode("Wh", add_special_tokens=False)[:1], [first]
    found = pieces.of(b + a)
    assert found[0] == "\ufffd"
    assert found[1].startswith("W")


def test_a_first_token_keeps_its_blank(tmp_path):
    """sentencepiece's decoders take the blank off the first token of what they decode."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE({"a": 0, "▁b": 1, "<unk>": 2}, [], unk_token="<unk>"))
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    assert Pieces(PreTrainedTokenizerFast(tokenizer_object=backend)).of([1, 1]) == [" b", " b"]
