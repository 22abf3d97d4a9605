"""What a teacher alone reads of a prompt: a suffix, another column, or privileged context from the data."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_gopd.config.schema import Column, Context, Suffix
from megatron_gopd.data.render import last_user_message, render, replace_user_message
from megatron_gopd.data.rows import Row, as_messages, column_of
from megatron_gopd.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def teacher_messages(kind: Suffix | Column, row: Row, messages: list[dict]) -> list[dict]:
    """The teacher's conversation; data.prompt_template is no part of a column, which is read as written."""
    if isinstance(kind, Suffix):
        return replace_user_message(messages, f"{last_user_message(messages)['content']}\n{kind.suffix}")
    value = column_of(row, kind.column)
    column = as_messages(value, kind.column)
    return replace_user_message(messages, value) if isinstance(value, str) else column


def render_with_context(
    kind: Context, row: Row, messages: list[dict], tokenizer: PreTrainedTokenizerBase, kwargs: dict
) -> tuple[list[int], bool]:
    """The prompt with the row's context around its last user message: its token ids, and whether the context was cut.

    Under too_long: truncate the context loses its end until all fits into max_tokens; a prompt that is longer without
    any context stays longer. Raises UserError: the row has no such column, or no text in it.
    """
    context = column_of(row, kind.context)
    if not isinstance(context, str) or not context.strip():
        raise UserError(f"the context, column {kind.context!r}, is not text: {str(context)[:50]!r}")
    whole = _render(kind, context, messages, tokenizer, kwargs)
    tokens, ids, cut = whole, None, False
    while len(tokens) > kind.max_tokens and kind.too_long == "truncate" and ids != []:
        ids = tokenizer(context, add_special_tokens=False)["input_ids"] if ids is None else ids
        ids, cut = ids[: max(0, len(ids) - (len(tokens) - kind.max_tokens))], True
        tokens = _render(kind, tokenizer.decode(ids), messages, tokenizer, kwargs)
    return tokens, cut


def _render(
    kind: Context, context: str, messages: list[dict], tokenizer: PreTrainedTokenizerBase, kwargs: dict
) -> list[int]:
    question = last_user_message(messages)["content"]
    # what stands in a question, or in a context, is no template
    parts = (part.replace("{context}", context) for part in kind.template.split("{prompt}"))
    return render(tokenizer, replace_user_message(messages, question.join(parts)), kwargs)
