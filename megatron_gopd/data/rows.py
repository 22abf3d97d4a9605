"""Rows of prompts with one shape, whatever convention wrote the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from megatron_gopd.data.files import read_file
from megatron_gopd.data.labels import ANY_OF, LABEL_COLUMNS, Label, as_text, is_missing, label_of
from megatron_gopd.data.shards import files_of
from megatron_gopd.errors import UserError


@dataclass(frozen=True)
class Row:
    """One prompt as its file holds it: nothing rendered, no teacher chosen."""

    id: str
    messages: list[dict]
    gold: Label
    tag: str | None  # opd_teacher
    data_source: str | None
    columns: dict
    source: str  # FILE:LINE, or FILE:row N counted from 1
    tests: str | None = None  # JSON, of a row that asks for a program

    @property
    def label(self) -> str | None:
        return self.gold.text


def load_rows(path: str | Path | list[str]) -> list[Row]:
    """Read a .jsonl or .parquet file, a folder of such shards or a glob, or several one after another.

    Columns: `prompt` (text or messages) or `messages`; optional `label` | `answer` | `ground_truth` |
    `golden_answers` | `reward_model.ground_truth`; `tests`, which is the ground truth where `ability` is code; `id` |
    `extra_info.index` | the line number; `opd_teacher` at top level, in `metadata` or in `extra_info`; `data_source`.
    Ids are unique: an `id` written twice is a mistake, an index or a line number that several rows share gets its
    place added.
    Raises UserError naming FILE:LINE of whatever cannot be read.
    """
    paths = [file for one in (path if isinstance(path, list) else [path]) for file in files_of(one)]
    if not paths or len(set(paths)) < len(paths):
        raise UserError(f"the files of prompts are {', '.join(map(str, paths)) or 'none'}; name each once")
    rows = []
    for one in paths:
        before = len(rows)
        for source, number, columns in read_file(one):
            with errors_at(source):
                rows.append(_row(columns, number, source))
        if len(rows) == before:
            raise UserError(f"{one}: the file is empty; write one prompt a row")
    return _with_unique_ids(rows)


@contextmanager
def errors_at(source: str) -> Iterator[None]:
    """Put FILE:LINE before the message of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def column_of(row: Row, name: str) -> object:
    """The value of a column: at top level, then in extra_info, then in metadata; UserError where there is none.

    A dotted name such as extra_info.ref_solution says itself where it is.
    """
    for columns in (row.columns, _mapping(row.columns, "extra_info"), _mapping(row.columns, "metadata")):
        if columns.get(name) is not None:
            return columns[name]
    outer, _, inner = name.partition(".")
    if inner and _mapping(row.columns, outer).get(inner) is not None:
        return row.columns[outer][inner]
    raise UserError(f"no column {name!r}, nor in extra_info or metadata; columns: {', '.join(row.columns)}")


def as_messages(value: object, column: str) -> list[dict]:
    """Text, or a list of {role, content}, as messages; UserError when it is empty, neither, or answered already."""
    messages = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise UserError(f"{column!r} is neither text nor a list of messages {{role, content}}")
    for number, message in enumerate(messages, 1):
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                raise UserError(f"{column!r}: message {number} needs a {key!r} that is text")
    if not any(message["content"].strip() for message in messages if message["role"] == "user"):
        raise UserError(f"{column!r} is empty: it needs a message of role 'user' with text in it")
    if messages[-1]["role"] == "assistant":
        raise UserError(
            f"{column!r} ends with a message of the assistant, which would be read and then answered again; leave that "
            f"message out (what SFT learns stands in a column 'response')"
        )
    # parquet fills the keys a message lacks with null; a template would take them for set
    return [{key: item for key, item in message.items() if item is not None} for message in messages]


def _row(columns: dict, number: int, source: str) -> Row:
    if all(value is None for value in columns.values()):
        raise UserError("an empty row; delete it, or give it a prompt")
    prompt_column = next((name for name in ("prompt", "messages") if columns.get(name) is not None), None)
    if prompt_column is None:
        raise UserError(f"no column 'prompt' or 'messages'; columns: {', '.join(columns)}")
    extra, metadata = _mapping(columns, "extra_info"), _mapping(columns, "metadata")
    ground_truth = _mapping(columns, "reward_model").get("ground_truth")
    is_code = columns.get("ability") == "code"  # as verl and the published G-OPD files say it
    golden = {ANY_OF[0]: columns.get(ANY_OF[0])} if columns.get(ANY_OF[0]) else None
    labels = [*(columns.get(name) for name in LABEL_COLUMNS), golden, None if is_code else ground_truth]
    return Row(
        id=_first_text(columns.get("id"), extra.get("index"), number),
        messages=as_messages(columns[prompt_column], prompt_column),
        gold=label_of(*labels),
        tag=_first_text(*(part.get("opd_teacher") for part in (columns, metadata, extra))),
        data_source=_first_text(columns.get("data_source")),
        columns=columns,
        source=source,
        tests=_first_text(columns.get("tests"), ground_truth if is_code else None),
    )


def _first_text(*values: object) -> str | None:
    """The first value that is set, as text."""
    return as_text(next((value for value in values if not is_missing(value)), None))


def _mapping(columns: dict, name: str) -> dict:
    value = columns.get(name)
    return value if isinstance(value, dict) else {}


def _with_unique_ids(rows: list[Row]) -> list[Row]:
    """An `id` column is the user's word, so twice is a mistake; an index counts within one origin and may recur."""
    written: dict[str, str] = {}
    for row in rows:
        if row.columns.get("id") is not None and written.setdefault(row.id, row.source) != row.source:
            raise UserError(f"{row.source}: the id {row.id!r} is taken by {written[row.id]}; give each row its own id")
    count = Counter(row.id for row in rows)
    return [
        replace(row, id=f"{row.id}@{row.source}") if count[row.id] > 1 and row.columns.get("id") is None else row
        for row in rows
    ]
