"""Prompts of the user's own, each with what its answers are graded by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from megatron_gopd.config.schema import Sandbox
from megatron_gopd.data import PROMPT_TEMPLATES, Prompt, apply_prompt_template, load_rows, render
from megatron_gopd.data.rows import errors_at
from megatron_gopd.errors import UserError
from megatron_gopd.rewards import check_gold, grader_of
from megatron_gopd.rewards.custom import CustomReward

NO_THINKING: Mapping = {"enable_thinking": False}


@dataclass(frozen=True)
class Labelled:
    """A file of prompts, and how they are asked and graded."""

    data: Path
    grader: str = "math"
    prompt_template: str = "none"
    limit: int | None = None
    sandbox: Sandbox = field(default_factory=Sandbox)
    chat_template_kwargs: Mapping = field(default_factory=lambda: NO_THINKING)

    def prompts(self, tokenizer) -> list[Prompt]:
        """Raises UserError: an unknown grader or template, a row without what its grader needs, or that is not fit.

        Whether a function of the user's own can be loaded is node_graders.check_machines to tell.
        """
        custom = CustomReward.parse(self.grader)
        if not custom and self.grader not in ("math", "math_lenient", "exact", "code", "auto"):
            raise UserError(f"--grader {self.grader}: choose math, math_lenient, exact, code, auto or FILE.py:FUNCTION")
        if self.prompt_template not in PROMPT_TEMPLATES:
            raise UserError(f"--prompt-template {self.prompt_template}: choose {', '.join(PROMPT_TEMPLATES)}")
        prompts = []
        for row in load_rows(self.data)[: self.limit]:
            messages = apply_prompt_template(row.messages, self.prompt_template)
            columns = row.columns if custom else {}
            with errors_at(row.source):
                tokens = render(tokenizer, messages, dict(self.chat_template_kwargs))
                read = (tokens, tokens, tokens)
                gold = {"golds": row.gold.golds, "any_of": row.gold.any_of, "columns": columns}
                prompt = Prompt(row.id, messages, row.label, "", *read, row.source, row.tests, **gold)
                self._check(prompt)
            prompts.append(prompt)
        return prompts

    def _check(self, prompt: Prompt) -> None:
        kind = grader_of(self.grader, prompt)
        if kind is None:
            raise UserError("no label to grade against; add `label`, `answer` or `ground_truth`")
        if kind == "code" and prompt.tests is None:
            raise UserError("no tests to grade against; add `tests`")
        check_gold(kind, prompt, self.sandbox)
