"""What a run reads, looked at before it starts, by the same code as train: models, tokenizers, prompts, rewards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from megatron_gopd.config import Config
from megatron_gopd.data import PromptSet, Tokenizers, stop_ids
from megatron_gopd.launch.findings import Finding, Verdict, verdict
from megatron_gopd.rewards import check_machine
from megatron_gopd.runs import FinishedError, RunFolder
from megatron_gopd.training import checks
from megatron_gopd.training.cautions import cautions
from megatron_gopd.training.exams import suites_of

# check -> those without which there is nothing to look at
NEEDS = {
    "run": (),
    "models": (),
    "tokenizers": (),
    "prompts": ("tokenizers",),
    "rewards": ("prompts",),
    "evaluation": ("tokenizers",),
    "cautions": ("models", "prompts"),
}


@dataclass
class Inputs:
    """The inputs of a run on `ranks` ranks. `here`: whether this is a machine that it will compute on."""

    config: Config
    ranks: int
    here: bool = True
    _tokenizers: Tokenizers | None = field(default=None, init=False)
    _prompts: PromptSet | None = field(default=None, init=False)

    def findings(self) -> Iterator[Finding]:
        """One a check, in order; those left out that need what another has found unfit."""
        failed = set()
        for check, needs in NEEDS.items():
            if failed.intersection(needs):
                failed.add(check)
                continue
            found = verdict(check, getattr(self, f"_look_at_{check}"))
            if found.verdict == "failed":
                failed.add(check)
            yield found

    def _look_at_run(self) -> Verdict:
        """Raises UserError: the run's folder is another's."""
        try:
            RunFolder.check(self.config)
        except FinishedError as told:
            return "ok", str(told), ""
        return "ok", f"{self.config.run.folder}/{self.config.run.name} is free for it", ""

    def _look_at_models(self) -> Verdict:
        """Raises UserError: a model, a layout, or a precision that this node's GPU lacks."""
        checks.check_models(self.config, self.ranks)
        if self.here:
            checks.check_models_here(self.config)
        return "ok", f"{1 + len(self.config.scorers())} models fit their layouts on {self.ranks} ranks", ""

    def _look_at_tokenizers(self) -> Verdict:
        """Raises UserError: one differs from the student's, is damaged, or does not know what ends a response."""
        self._tokenizers = checks.check_tokenizers(self.config)
        tokenizer = self._tokenizers.student
        ends = tokenizer.convert_ids_to_tokens(stop_ids(self.config.student.model, tokenizer))
        return "ok", f"{len(tokenizer):,} tokens, the same of every model; {', '.join(ends)} ends a response", ""

    def _look_at_prompts(self) -> Verdict:
        """Raises UserError: a row that is unfit, or fewer prompts than a batch."""
        self._prompts, loader = checks.read_prompts(self.config, self._tokenizers)
        prompts, steps = self._prompts.prompts, self.config.run.steps
        of = Counter(prompt.teacher for prompt in prompts)
        each = ", ".join(f"{of[name]:,} of {name}" for name in self.config.teachers)
        longest = max(len(prompt.student_tokens) for prompt in prompts)
        said = [
            f"{len(prompts):,} prompts{': ' + each if each else ''}",
            *(f"{count:,} longer than {setting} left out" for setting, count in self._prompts.left_out.items()),
            f"the longest has {longest:,} tokens",
            f"{steps} steps of {loader.batch_size} read them {steps * loader.batch_size / len(prompts):.1f} times",
        ]
        warned = self._prompts.warnings
        return "warning" if warned else "ok", "; ".join([*said, *warned]), ""

    def _look_at_rewards(self) -> Verdict:
        """Raises UserError: a row that cannot be graded; here, no sandbox, or no function of the user's own."""
        graders = checks.check_rewards(self.config, self._prompts)
        if self.here:
            checks.check_rewards_here(self.config, graders)
        graded = {kind or "nothing": count for kind, count in graders.items()}
        told = ", ".join(f"{kind} grades {count:,} prompts" for kind, count in sorted(graded.items()))
        return "ok", told or "nothing is graded", ""

    def _look_at_evaluation(self) -> Verdict:
        """Raises UserError: an unknown suite, a missing file, rows that are not fit; here, no sandbox."""
        held_out = checks.read_held_out(self.config, self._tokenizers)
        suites = suites_of(self.config, self._tokenizers)
        if self.here:
            check_machine(set().union(*(suite.graders for suite in suites)), self.config.sandbox)
        told = [f"{len(held_out.prompts):,} held-out prompts"] if held_out else []
        told += [f"{suite.name}: {len(suite.prompts):,} problems" for suite in suites]
        return "ok", ", ".join(told) or "none is asked for", ""

    def _look_at_cautions(self) -> Verdict:
        """Raises UserError: rows that the student's servers would refuse."""
        told = cautions(self.config, self._tokenizers, self._prompts.prompts)
        return "warning" if told else "ok", "; ".join(told) or "none", ""
