"""`megatron-gopd evaluate --suite`: benchmarks by name, resumable answer by answer."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron_gopd.config.rules import FILES_OF_PROBLEMS
from megatron_gopd.config.schema import Sandbox
from megatron_gopd.data import Prompt, Trajectory, load_tokenizer
from megatron_gopd.data.shards import files_of
from megatron_gopd.errors import UserError
from megatron_gopd.evaluation.answers import Answer, Answers
from megatron_gopd.evaluation.engine import engine_of
from megatron_gopd.evaluation.labelled import NO_THINKING, Labelled
from megatron_gopd.evaluation.node_graders import NodeGraders, check_machines
from megatron_gopd.evaluation.options import check_length, check_options
from megatron_gopd.evaluation.suite_report import SuiteResult, write_report
from megatron_gopd.evaluation.suites import find_suite
from megatron_gopd.ranks import is_first, on_first
from megatron_gopd.rewards import Grade, grader_of
from megatron_gopd.rollout import RolloutEngine
from megatron_gopd.runs import write_text
from megatron_gopd.terminal import say

SAMPLES_OF_A_FILE = 4


@dataclass(frozen=True)
class Settings:
    """How answers are sampled: the paper's, temperature 1 and top-p 1, at most 16,384 tokens."""

    benchmarks: Path = Path("data/benchmarks")  # the folder of their files
    samples: int | None = None  # None: each suite's own, 32 or 4
    max_response_tokens: int = 16384
    temperature: float = 1.0
    limit: int | None = None  # the first problems of each suite
    sandbox: Sandbox = field(default_factory=Sandbox)
    # of files of the user's own
    grader: str = "math"
    prompt_template: str = "none"
    chat_template_kwargs: Mapping = field(default_factory=lambda: NO_THINKING)


@dataclass(frozen=True)
class Problems:
    """A suite that is ready to be asked."""

    name: str  # of what is written of it, and of its metrics
    prompts: list[Prompt]
    grader: str
    samples: int
    published: int | None  # problems of the whole benchmark
    fingerprint: str | None = None  # of a file of the user's own, and of how it is graded

    @property
    def graders(self) -> set[str | None]:
        return {grader_of(self.grader, prompt) for prompt in self.prompts}


def evaluate_suites(
    model: Path,
    names: list[str],
    output: Path,
    settings: Settings,
    *,
    dtype: str,
    seed: int,
    servers: Sequence[str] = (),
) -> list[SuiteResult]:
    """Answer, grade and report every suite in the folder `output`. Collective.

    servers: addresses of SGLang servers that hold the model and answer; without any, this process does.

    The same call again goes on where it was interrupted. Raises UserError: an unknown suite, a missing file, a row that
    is not as published, an option, a machine that cannot run programs safely, `output` of another evaluation, a server
    of another model.
    """
    check_options(dtype, settings.temperature, None)
    check_length(model, settings.max_response_tokens)
    tokenizer = load_tokenizer(model)
    asked = problems_of(names, settings, tokenizer)
    check_machines(set().union(*(problems.graders for problems in asked)), settings.sandbox)
    described = _describe(model, asked, settings, dtype, seed)
    on_first(lambda: _open(output, described))
    limits = {"max_response_tokens": settings.max_response_tokens, "temperature": settings.temperature}
    engine = engine_of(model, servers, dtype=dtype, seed=seed, **limits)
    try:
        engine.start(None, output)
        results = [run_suite(problems, engine, tokenizer, output, settings) for problems in asked]
    finally:
        engine.close()
    if is_first():
        write_report(results, described, output)
    return results


def problems_of(names: list[str], settings: Settings, tokenizer) -> list[Problems]:
    """The problems of benchmarks by name, and of .jsonl and .parquet files of the user's own, named by their stem.

    Raises UserError: see evaluate_suites; two of one name.
    """
    found = [_problems(name, settings, tokenizer) for name in names]
    twice = [name for name, count in Counter(each.name for each in found).items() if count > 1]
    if twice:
        raise UserError(f"two suites are called {twice[0]!r}; rename one of the files")
    return found


def _problems(name: str, settings: Settings, tokenizer) -> Problems:
    if not name.endswith(FILES_OF_PROBLEMS):
        suite = find_suite(name)
        prompts = suite.prompts(name, settings.benchmarks, tokenizer)[: settings.limit]
        return Problems(name, prompts, suite.domain, settings.samples or suite.samples, suite.size)
    own = settings.grader, settings.prompt_template, settings.limit, settings.sandbox, settings.chat_template_kwargs
    path, samples = Path(name), settings.samples or SAMPLES_OF_A_FILE
    if files_of(name) != [path]:
        raise UserError(f"{name}: a suite is one file, which names it: name each")
    prompts = Labelled(path, *own).prompts(tokenizer)
    read = hashlib.sha256(path.read_bytes() + json.dumps([settings.grader, settings.prompt_template]).encode())
    return Problems(path.name.partition(".")[0], prompts, settings.grader, samples, None, read.hexdigest()[:16])


def run_suite(problems: Problems, engine: RolloutEngine, tokenizer, folder: Path, settings: Settings) -> SuiteResult:
    """Answer the problems that `folder`/NAME.jsonl lacks, and sum up all of them. Collective.

    Where the engine has seeds, the random numbers are those of every other model's answers, so that these pair.
    """
    samples, path = problems.samples, folder / f"{problems.name}.jsonl"
    done = on_first(lambda: Answers(path, samples).done)
    left = [prompt for prompt in problems.prompts if prompt.id not in done]
    book = Answers(path, samples) if is_first() else None
    with NodeGraders(problems.grader, settings.sandbox) as graders:
        chunks = engine.generate(left, 0, samples=samples, max_tokens=settings.max_response_tokens) if left else ()
        for chunk in chunks:
            grades = graders.grade(chunk, tokenizer)
            if is_first():
                book.add(_answers(chunk, grades, tokenizer))
                say(f"{problems.name}: {len(book.rows)} of {len(problems.prompts) * samples} answers", flush=True)
    return on_first(lambda: _summed_up(problems, book))


def _summed_up(problems: Problems, book: Answers) -> SuiteResult:
    asked = {prompt.id for prompt in problems.prompts}  # a limit may be lower than it was
    rows = [row for row in book.rows if row.id in asked]
    return SuiteResult.of(problems.name, problems.published, problems.samples, rows)


def _answers(chunk: list[Trajectory], grades: list[Grade], tokenizer) -> list[Answer]:
    return [
        Answer(
            each.prompt.id,
            each.sample,
            each.text(tokenizer),
            len(each),
            grade.score,
            grade.problem,
            each.finish_reason,
        )
        for each, grade in zip(chunk, grades, strict=True)
    ]


def _describe(model: Path, asked: list[Problems], settings: Settings, dtype: str, seed: int) -> dict:
    """What makes two evaluations the same: all but which and how many problems are asked, and where programs run."""
    return {
        "model": str(model.resolve()),
        "samples": settings.samples,
        "max_response_tokens": settings.max_response_tokens,
        "temperature": settings.temperature,
        "dtype": dtype,
        "seed": seed,
    } | {f"problems of {each.name}": each.fingerprint for each in asked if each.fingerprint}


def _open(output: Path, described: dict) -> None:
    """Make the folder, or see that it holds an evaluation with these settings."""
    path = output / "settings.json"
    there: dict = {}
    if path.exists():
        there = json.loads(path.read_text(encoding="utf-8"))
    elif output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise UserError(f"--output {output} holds no evaluation; name a new or an empty folder")
    differing = [
        f"{key}: there {there[key]}, here {value}" for key, value in described.items() if there.get(key, value) != value
    ]
    if differing:
        raise UserError(
            f"--output {output} holds an evaluation of other settings ({'; '.join(differing)}); name another"
        )
    output.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(there | described, indent=1) + "\n")
