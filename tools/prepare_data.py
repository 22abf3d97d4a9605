"""The paper's training sets, from local copies of the published files, as one prompt file.

    python tools/prepare_data.py data/train.parquet --deepmath DeepMath-103K/data --eurus Eurus-2-RL-Data --equal

Math: zwhe99/DeepMath-103K from difficulty 6 (the paper: 57K); rows keep `answer`. Code: the code part of
PRIME-RL/Eurus-2-RL-Data (25K); rows keep `tests`, the published JSON of inputs and outputs. As in the paper, system
prompts are left out and each question is followed by the instructions of its domain: train with prompt_template: none.
Rows stream; `--equal` reads the files twice.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Annotated

import pyarrow
import typer
from pyarrow import parquet

from megatron_gopd.data.balance import equal_sample
from megatron_gopd.data.files import read_file
from megatron_gopd.data.render import apply_prompt_template, last_user_message, replace_user_message
from megatron_gopd.data.rows import as_messages, errors_at
from megatron_gopd.data.shards import files_of
from megatron_gopd.errors import UserError
from megatron_gopd.runs import print_table
from megatron_gopd.runs.atomic import atomic_file

SUFFIXES = (".jsonl", ".parquet")
BATCH_ROWS = 128
# what every published code question ends with; the paper's own instructions take its place
PUBLISHED_INSTRUCTIONS = re.compile(
    r"\s*Write Python code to solve the problem\.\s+Present the code in\s+"
    r"```python\s+Your code\s+```\s*at the end\.?\s*\Z"
)


@dataclass
class Source:
    """One published data set: which rows become prompts for which teacher, and what came of them."""

    path: Path
    teacher: str
    columns: tuple[str, ...]
    convert: Callable[[dict], dict | str]  # the row, or why it is left out
    read: int = 0
    kept: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    def rows(self) -> Iterator[dict]:
        """Counts anew. Raises UserError: a file, a column or a row that is not as published, or none to keep."""
        self.read, self.kept, self.left_out = 0, 0, Counter()
        for path in _files(self.path):
            for place, _, columns in read_file(path, self.columns):
                with errors_at(place):
                    row = self.convert(columns)
                if isinstance(row, str):
                    self.left_out[row] += 1
                else:
                    self.kept += 1
                    yield {"id": f"{self.teacher}-{self.read}", "opd_teacher": self.teacher, **row}
                self.read += 1
        if not self.kept:
            raise UserError(f"{self.path}: none of {self.read} rows is kept: {_reasons(self)}")


def deepmath(path: Path, min_difficulty: float) -> Source:
    columns = ("question", "final_answer", "difficulty")
    return Source(path, "math", columns, partial(_math_row, min_difficulty=min_difficulty))


def eurus(path: Path) -> Source:
    return Source(path, "code", ("data_source", "prompt", "ability", "reward_model"), _code_row)


def prepare_data(sources: list[Source], output: Path, *, equal: bool = False, seed: int = 42) -> None:
    """Write the rows of all sources to the new file `output`; the sources count what was read, kept and left out.

    equal: as many rows of each source as the smallest has, drawn without replacement.
    Raises UserError, and then writes nothing.
    """
    if output.suffix not in SUFFIXES:
        raise UserError(f"{output}: name a file that ends in {' or '.join(SUFFIXES)}")
    if output.exists():
        raise UserError(f"{output} exists; name a new file, or remove it")
    if not sources:
        raise UserError("nothing to prepare; name --deepmath or --eurus, or both")
    chosen = None
    if equal:
        chosen = set(equal_sample([source.teacher for source in sources for _ in source.rows()], seed))
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(output) as file:
        _write(_chosen(sources, chosen), file, output.suffix)


def _chosen(sources: list[Source], chosen: set[int] | None) -> Iterator[dict]:
    """The rows whose number over all sources was drawn; None: all."""
    rows = ((source, row) for source in sources for row in source.rows())
    for number, (source, row) in enumerate(rows):
        if chosen is None or number in chosen:
            yield row
        else:
            source.left_out["to have as many of each"] += 1
            source.kept -= 1


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return files_of(path)
    held_out = ("validation", "test")
    files = sorted(each for each in path.iterdir() if each.suffix in SUFFIXES and not each.name.startswith(held_out))
    if not files:
        raise UserError(f"{path}: no {' or '.join(SUFFIXES)} file in it, but for validation* and test*")
    return files


def _math_row(columns: dict, min_difficulty: float) -> dict | str:
    difficulty = columns["difficulty"]
    if isinstance(difficulty, bool) or not isinstance(difficulty, int | float):
        raise UserError(f"difficulty is {difficulty!r}; a number is expected")
    if not difficulty >= min_difficulty:
        return f"difficulty below {min_difficulty:g}"
    if not isinstance(columns["final_answer"], str):
        raise UserError(f"final_answer is {columns['final_answer']!r}; text is expected")
    if not columns["final_answer"].strip():
        return "no final answer"
    messages = apply_prompt_template(as_messages(columns["question"], "question"), "math")
    return {"data_source": "DeepMath-103K", "prompt": messages, "answer": columns["final_answer"]}


def _code_row(columns: dict) -> dict | str:
    if columns["ability"] != "code":
        return f"ability {columns['ability']}"
    tests = columns["reward_model"].get("ground_truth") if isinstance(columns["reward_model"], dict) else None
    if not _paired(tests):
        return "no tests with an output for each input"
    messages = [message for message in as_messages(columns["prompt"], "prompt") if message["role"] != "system"]
    question = PUBLISHED_INSTRUCTIONS.sub("", last_user_message(messages)["content"])
    messages = apply_prompt_template(replace_user_message(messages, question), "code")
    return {"data_source": columns["data_source"], "prompt": messages, "tests": tests}


def _paired(tests: object) -> bool:
    try:
        cases = json.loads(tests, parse_int=str)  # Python refuses to convert integers of more than 4300 digits
        inputs, outputs = cases["inputs"], cases["outputs"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"reward_model.ground_truth is no JSON object of inputs and outputs ({type(error).__name__}: {error})"
        ) from None
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        raise UserError("reward_model.ground_truth: inputs and outputs are expected to be lists")
    return 0 < len(inputs) == len(outputs)


def _write(rows: Iterator[dict], path: Path, suffix: str) -> None:
    """As .jsonl without the columns a row lacks, or as .parquet."""
    if suffix == ".jsonl":
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return
    message = pyarrow.struct({"role": pyarrow.string(), "content": pyarrow.string()})
    columns = dict.fromkeys(("id", "opd_teacher", "data_source", "prompt", "answer", "tests"), pyarrow.string())
    schema = pyarrow.schema(columns | {"prompt": pyarrow.list_(message)})
    with parquet.ParquetWriter(path, schema) as file:
        while batch := list(islice(rows, BATCH_ROWS)):
            file.write_table(pyarrow.Table.from_pylist(batch, schema))


def _reasons(source: Source) -> str:
    return "; ".join(f"{count:,} {reason}" for reason, count in source.left_out.items() if count)


def main(
    output: Annotated[Path, typer.Argument(help="new file, .parquet or .jsonl")],
    deepmath_path: Annotated[
        Path | None, typer.Option("--deepmath", help="DeepMath-103K: a file, or a folder of .parquet or .jsonl")
    ] = None,
    eurus_path: Annotated[Path | None, typer.Option("--eurus", help="Eurus-2-RL-Data: likewise")] = None,
    min_difficulty: Annotated[float, typer.Option(help="of the math questions")] = 6.0,
    equal: Annotated[bool, typer.Option("--equal", help="as many rows for each teacher")] = False,
    seed: Annotated[int, typer.Option(min=0, help="of --equal")] = 42,
) -> None:
    """Write the paper's math and code prompts as one training file."""
    sources = [deepmath(deepmath_path, min_difficulty)] if deepmath_path else []
    sources += [eurus(eurus_path)] if eurus_path else []
    prepare_data(sources, output, equal=equal, seed=seed)
    cells = [[each.teacher, each.read, each.kept, _reasons(each) or "none"] for each in sources]
    print_table(str(output), ["teacher", "read", "kept", "left out"], cells)


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
