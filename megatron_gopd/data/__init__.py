"""Prompts in, batches of prompts out; nothing here knows a model."""

from megatron_gopd.data.loader import PromptLoader
from megatron_gopd.data.prompts import PromptSet, build_prompts
from megatron_gopd.data.render import PROMPT_TEMPLATES, apply_prompt_template, render
from megatron_gopd.data.rows import Row, load_rows
from megatron_gopd.data.side_files import stop_ids
from megatron_gopd.data.tokenizer import Tokenizers, check_same_tokenizer, load_tokenizer, load_tokenizers
from megatron_gopd.data.trajectory import Prompt, Trajectory

__all__ = [
    "PROMPT_TEMPLATES",
    "Prompt",
    "PromptLoader",
    "PromptSet",
    "Row",
    "Tokenizers",
    "Trajectory",
    "apply_prompt_template",
    "build_prompts",
    "check_same_tokenizer",
    "load_rows",
    "load_tokenizer",
    "load_tokenizers",
    "render",
    "stop_ids",
]
