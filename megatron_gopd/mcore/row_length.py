"""How long a row may be, against what a model can read."""

from __future__ import annotations

from megatron_gopd.config import Config
from megatron_gopd.errors import UserError
from megatron_gopd.mcore.architecture import Architecture


def check_context(config: Config) -> None:
    """Raises UserError: a response alone may be longer than all that the student can read."""
    limit, longest = Architecture.read(config.student.model).context, config.rollout.max_response_tokens
    if longest >= limit:
        raise UserError(too_long(config, longest + 1, "the student", config.student.model, limit))


def too_long(config: Config, tokens: int, who: str, folder: str, limit: int) -> str:
    """The refusal, or the warning, of rows of `tokens` tokens."""
    return (
        f"rollout.max_response_tokens ({config.rollout.max_response_tokens}), with prompts of up to "
        f"data.max_prompt_tokens ({config.data.max_prompt_tokens}), allows rows of {tokens} tokens, but "
        f"max_position_embeddings of {who} ({folder}) is {limit}; lower one of the two"
    )
