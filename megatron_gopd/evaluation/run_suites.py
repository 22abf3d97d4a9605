"""`megatron-gopd evaluate --suite`: benchmarks by name, resumable answer by answer."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from megatron_gopd.config.schema import Sandbox
from megatron_gopd.data import Prompt, Trajectory, load_tokenizer
from megatron_gopd.errors import UserError
from megatron_gopd.evaluation.answers import Answer, Answers
from megatron_gopd.evaluation.options import check_options
from megatron_gopd.evaluation.suite_report import SuiteResult, write_report
from megatron_gopd.evaluation.suites import Suite, find_suite
from megatron_gopd.ranks import is_first, on_first
from megatron_gopd.rewards import GraderPool, check_sandbox
from megatron_gopd.rollout import EmbeddedEngine, RolloutEngine
from megatron_gopd.runs import write_text


@dataclass(frozen=True)
class Settings:
    """How answers are sampled: the paper's, temperature 1 and top-p 1, at most 16,384 tokens."""

    benchmarks: Path = Path("data/benchmarks")  # the folder of their files
    samples: int | None = None  # None: each suite's own, 32 or 4
    max_response_tokens: int = 16384
    temperature: float = 1.0
    limit: int | None = None  # the first problems of each suite
    sandbox: Sandbox = field(default_factory=Sandbox)


def evaluate_suites(
    model: Path, names: list[str], output: Path, settings: Settings, *, dtype: str, seed: int
) -> list[SuiteResult]:
    """Answer, grade and report every suite in the folder `output`. Collective.

    The same call again goes on where it was interrupted. Raises UserError: an unknown suite, a missing file, a row that
    is not as published, an option, a machine that cannot run programs safely, `output` of another evaluation.
    """
    check_options(dtype, settings.temperature, None)
    tokenizer = load_tokenizer(model)
    asked = {name: problems_of(name, settings, tokenizer) for name in names}
    if any(find_suite(name).domain == "code" for name in names):
        on_first(lambda: check_sandbox(settings.sandbox))
    described = _describe(model, settings, dtype, seed)
    on_first(lambda: _open(output, described))
    engine = EmbeddedEngine(
        model,
        dtype=dtype,
        max_response_tokens=settings.max_response_tokens,
        temperature=settings.temperature,
        seed=seed,
    )
    results = [run_suite(name, prompts, engine, tokenizer, output, settings) for name, prompts in asked.items()]
    if is_first():
        write_report(results, described, output)
    return results


def problems_of(name: str, settings: Settings, tokenizer) -> list[Prompt]:
    return find_suite(name).prompts(name, settings.benchmarks, tokenizer)[: settings.limit]


def run_suite(
    name: str, prompts: list[Prompt], engine: RolloutEngine, tokenizer, folder: Path, settings: Settings, step: int = 0
) -> SuiteResult:
    """Answer the problems that `folder`/NAME.jsonl lacks, and sum up all of them. Collective.

    step: of a training run; it chooses the random numbers.
    """
    suite = find_suite(name)
    samples = settings.samples or suite.samples
    path = folder / f"{name}.jsonl"
    done = on_first(lambda: Answers(path, samples).done)
    left = [prompt for prompt in prompts if prompt.id not in done]
    book = Answers(path, samples) if is_first() else None
    pool = GraderPool(suite.domain, sandbox=settings.sandbox) if is_first() else None
    try:
        chunks = engine.generate(left, step, samples=samples, max_tokens=settings.max_response_tokens) if left else ()
        for chunk in chunks:
            if is_first():
                book.add(_graded(chunk, tokenizer, pool))
                print(f"{name}: {len(book.rows)} of {len(prompts) * samples} answers", flush=True)
    finally:
        if pool:
            pool.close()
    return on_first(lambda: _summed_up(name, suite, samples, prompts, book))


def _summed_up(name: str, suite: Suite, samples: int, prompts: list[Prompt], book: Answers) -> SuiteResult:
    asked = {prompt.id for prompt in prompts}  # a limit may be lower than it was
    return SuiteResult.of(name, suite.size, samples, [row for row in book.rows if row.id in asked])


def _graded(chunk: list[Trajectory], tokenizer, pool: GraderPool) -> list[Answer]:
    texts = [tokenizer.decode(each.response_tokens, skip_special_tokens=True) for each in chunk]
    labels = [each.prompt.tests or each.prompt.label for each in chunk]
    return [
        Answer(each.prompt.id, each.sample, text, len(each), grade.score, grade.problem, each.finish_reason)
        for each, text, grade in zip(chunk, texts, pool.grade(texts, labels), strict=True)
    ]


def _describe(model: Path, settings: Settings, dtype: str, seed: int) -> dict:
    """What makes two evaluations the same: all but how many problems are asked, and where programs run."""
    return {
        "model": str(model.resolve()),
        "samples": settings.samples,
        "max_response_tokens": settings.max_response_tokens,
        "temperature": settings.temperature,
        "dtype": dtype,
        "seed": seed,
    }


def _open(output: Path, described: dict) -> None:
    """Make the folder, or see that it holds an evaluation with these settings."""
    path = output / "settings.json"
    if not path.exists():
        if output.is_file() or (output.is_dir() and any(output.iterdir())):
            raise UserError(f"--output {output} holds no evaluation; name a new or an empty folder")
        output.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(described, indent=1) + "\n")
        return
    there = json.loads(path.read_text(encoding="utf-8"))
    differing = [
        f"{key}: there {there.get(key)}, here {value}" for key, value in described.items() if there.get(key) != value
    ]
    if differing:
        raise UserError(
            f"--output {output} holds an evaluation of other settings ({'; '.join(differing)}); name another"
        )
