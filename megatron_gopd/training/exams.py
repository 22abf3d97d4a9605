"""What a run measures of its student before, during and after training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from megatron_gopd.config import Config
from megatron_gopd.data.tokenizer import Tokenizers
from megatron_gopd.evaluation.node_graders import check_machines
from megatron_gopd.evaluation.probe import Probe
from megatron_gopd.evaluation.run_suites import Problems, Settings, problems_of, run_suite
from megatron_gopd.evaluation.standings import print_standings
from megatron_gopd.evaluation.statistics import Estimate
from megatron_gopd.evaluation.suite_report import SuiteResult, write_summary
from megatron_gopd.ranks import is_first
from megatron_gopd.rollout import EmbeddedEngine, RolloutEngine
from megatron_gopd.runs import Spans, print_table

if TYPE_CHECKING:
    from megatron_gopd.training.job import Job
    from megatron_gopd.training.recorder import Recorder


def check_suites(config: Config, tokenizers: Tokenizers) -> None:
    """Raises UserError, before any weight is loaded: what suites_of refuses; no safe place for programs. Collective."""
    if config.evaluation:
        graders = (problems.graders for problems in suites_of(config, tokenizers))
        check_machines(set().union(*graders), config.sandbox)


def suites_of(config: Config, tokenizers: Tokenizers) -> list[Problems]:
    """The benchmarks of the evaluation. Raises UserError: an unknown suite, a missing file, rows that are not fit."""
    asked = config.evaluation
    return problems_of(asked.suites, _settings(config), tokenizers.student) if asked else []


class Exams:
    """Holds one whenever it is due. Every method is collective over all ranks."""

    def __init__(self, config: Config, job: Job):
        self._config, self._job = config, job
        asked = config.evaluation
        self._probe = (
            Probe(config, job.tokenizers, job.student, job.scorers) if asked and asked.prompts is not None else None
        )
        self._settings = _settings(config) if asked else None
        self._problems = suites_of(config, job.tokenizers)
        self._held: set[str] = set()

    def after(self, step: int, recorder: Recorder, spans: Spans) -> dict[str, float]:
        """The metrics `eval/...` of a step at which an evaluation is due; nothing at others. The last's is `after`."""
        asked, last = self._config.evaluation, step == self._config.run.steps
        if not asked or not (last or (asked.every and step % asked.every == 0)):
            return {}
        with spans("evaluate"):
            return self.hold("after" if last else f"step-{step}", step, recorder)

    def hold(self, when: str, step: int, recorder: Recorder) -> dict[str, float]:
        """Measure the student after `step`, once each `when`; write what was found to evaluation/WHEN."""
        metrics: dict[str, float] = {}
        unasked = when == "before" and not (self._config.evaluation and self._config.evaluation.before)
        if unasked or when in self._held:
            return metrics
        self._held.add(when)
        if self._config.evaluation:
            recorder.phase("evaluating")
        engine = self._job.rollout
        if engine and engine.weight_version != step:  # SFT does not sample from the student, and leaves it behind
            engine.sync(self._job.student, step)
        if self._probe:
            measured = self._probe.measure(self._job.rollout)
            recorder.measured(when, measured)
            for name in ("reverse_kl_fixed", "reverse_kl_fresh", "teacher_nll"):
                metrics[f"eval/{name}"] = Estimate.of(getattr(measured, name)).mean
        results = self._suites(when, step)
        if is_first() and results:
            rows = [(each.suite, each.problems, f"avg@{each.samples} {each.accuracy}") for each in results]
            print_table(f"Benchmarks, {when}", ["suite", "problems", "accuracy"], rows)
        return metrics | {name: value for result in results for name, value in result.metrics().items()}

    def examine_teachers(self) -> None:
        """Where they are asked: each teacher's answers, in evaluation/teachers/NAME."""
        if not (self._config.evaluation and self._config.evaluation.teachers):
            return
        for name, teacher in self._config.teachers.items():
            results = self._answer(EmbeddedEngine.of(teacher, self._config), self._folder / "teachers" / name)
            if is_first():
                write_summary(results, {"model": teacher.model}, self._folder / "teachers" / name)

    def compare(self) -> None:
        """Say how the student stands beside what it was, and its teachers."""
        who = {"student, before": "before"} if self._config.evaluation and self._config.evaluation.before else {}
        if self._config.evaluation and self._config.evaluation.teachers:
            who |= {f"teacher {name}": f"teachers/{name}" for name in self._config.teachers}
        if who and self._problems and is_first():
            folders = {name: self._folder / place for name, place in who.items()} | {"student": self._folder / "after"}
            print_standings(folders, {problems.name: problems.samples for problems in self._problems})

    @property
    def _folder(self) -> Path:
        return Path(self._config.run.folder, self._config.run.name, "evaluation")

    def _suites(self, when: str, step: int) -> list[SuiteResult]:
        folder = self._folder / when
        if is_first() and when != "before":  # those of the initial weights are what an earlier attempt found
            for problems in self._problems:  # its other answers are of other weights
                (folder / f"{problems.name}.jsonl").unlink(missing_ok=True)
        results = self._answer(self._job.rollout, folder)
        if results and is_first():
            write_summary(results, {"step": step}, folder)
        return results

    def _answer(self, engine: RolloutEngine, folder: Path) -> list[SuiteResult]:
        """The random numbers are the same at every call, so answers pair."""
        if self._problems and is_first():
            folder.mkdir(parents=True, exist_ok=True)
        tokenizer = self._job.tokenizers.student
        return [run_suite(each, engine, tokenizer, folder, self._settings) for each in self._problems]


def _settings(config: Config) -> Settings:
    asked = config.evaluation
    return Settings(
        benchmarks=Path(asked.benchmarks),
        samples=asked.suite_samples,
        max_response_tokens=asked.suite_max_response_tokens or config.rollout.max_response_tokens,
        temperature=config.rollout.temperature,
        limit=asked.suite_limit,
        sandbox=config.sandbox,
        grader=config.rewards,
        prompt_template=config.data.prompt_template,
        chat_template_kwargs=config.data.chat_template_kwargs,
    )
