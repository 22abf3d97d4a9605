"""Messages -> the token ids a model reads before it answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_gopd.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROMPT_TEMPLATES = {
    "none": "{question}",
    "math": "{question}\nPlease reason step by step, and put your final answer within \\boxed{}.",
    "code": "{question}\nWrite Python code to solve the problem. Present the code in\n"
    "```python\nYour code\n```\nat the end.\nYou need to think first then write the Python code.",
}


def apply_prompt_template(messages: list[dict], template: str) -> list[dict]:
    """`messages` with the last user message put in place of `{question}` in the template of that name."""
    question = last_user_message(messages)["content"]
    # not str.format: the templates hold braces of their own (\boxed{})
    return replace_user_message(messages, PROMPT_TEMPLATES[template].replace("{question}", question))


def last_user_message(messages: list[dict]) -> dict:
    """The last message of role user; UserError when there is none."""
    for message in reversed(messages):
        if message["role"] == "user":
            return message
    raise UserError("the prompt has no message of role 'user'")


def replace_user_message(messages: list[dict], content: str) -> list[dict]:
    """`messages` (left as they are) with another content of the last user message."""
    asked = last_user_message(messages)
    return [{**message, "content": content} if message is asked else message for message in messages]


def render(tokenizer: PreTrainedTokenizerBase, messages: list[dict], chat_template_kwargs: dict) -> list[int]:
    """The token ids [prompt] of `messages`, up to where the assistant's answer begins.

    A tokenizer without a chat template reads the contents joined by newlines; no template, so no kwargs either.
    Raises UserError when the template refuses the messages or the kwargs.
    """
    plain = tokenizer.chat_template is None
    try:
        text = _joined(messages) if plain else _templated(tokenizer, messages, chat_template_kwargs)
        # a template writes the special tokens itself; plain text gets the tokenizer's own, such as <s>
        tokens = tokenizer(text, add_special_tokens=plain)["input_ids"]
    except Exception as error:  # of the template, or of the tokenizers library, which raises plain Exception
        raise UserError(
            f"{tokenizer.name_or_path or 'the tokenizer'} cannot render this prompt: {error}; "
            f"mend the messages, its chat template, or data.chat_template_kwargs ({chat_template_kwargs})"
        ) from error
    if not tokens:
        raise UserError("the prompt has no tokens once it is rendered; give it text that the tokenizer knows")
    return tokens


def _joined(messages: list[dict]) -> str:
    return "\n".join(message["content"] for message in messages)


def _templated(tokenizer: PreTrainedTokenizerBase, messages: list[dict], kwargs: dict) -> str:
    # text only: were it to tokenize as well, kwargs such as truncation would quietly shorten the prompt
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **kwargs)
