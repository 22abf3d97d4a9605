from __future__ import annotations

import json

import pytest

from megatron_gopd.data import load_rows
from megatron_gopd.errors import UserError


@pytest.fixture
def write_parquet(tmp_path):
    import pyarrow
    from pyarrow import parquet

    def write(rows: list[dict]):
        path = tmp_path / "train.parquet"
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path

    return write


def published(index: int, teacher: str) -> dict:
    """A row as the published G-OPD data has it."""
    return {
        "data_source": "DeepMath",
        "prompt": [{"role": "user", "content": f"What is {index} plus one?"}],
        "ability": "math",
        "reward_model": {"ground_truth": str(index + 1), "style": "rule"},
        "extra_info": {"index": index, "opd_teacher": teacher, "ref_solution": f"{index} + 1"},
    }


def test_the_published_parquet_is_read_unchanged(write_parquet):
    rows = load_rows(path := write_parquet([published(7, "math"), published(8, "code")]))
    assert [(row.id, row.label, row.tag, row.data_source) for row in rows] == [
        ("7", "8", "math", "DeepMath"),
        ("8", "9", "code", "DeepMath"),
    ]
    assert rows[1].messages == [{"role": "user", "content": "What is 8 plus one?"}]
    assert rows[1].columns["extra_info"]["ref_solution"] == "8 + 1"
    assert rows[1].source == f"{path}:row 2"


def test_parquet_columns_of_json_text_are_read_like_structs(write_parquet):
    row = published(7, "math")
    nested = {name: json.dumps(row[name]) for name in ("prompt", "reward_model", "extra_info")}
    (packed,) = load_rows(write_parquet([row | nested]))
    (plain,) = load_rows(write_parquet([row]))
    assert packed == plain


def test_a_parquet_prompt_that_only_looks_like_json_is_text(write_parquet):
    (row,) = load_rows(write_parquet([{"prompt": "[1, 2] is which type?"}]))
    assert row.messages == [{"role": "user", "content": "[1, 2] is which type?"}]


def test_keys_that_parquet_fills_with_null_are_not_set(write_parquet):
    messages = [{"role": "user", "content": "Add.", "name": None}, {"role": "user", "content": "Go.", "name": "Ada"}]
    (row,) = load_rows(write_parquet([{"prompt": messages}]))
    assert row.messages[0] == {"role": "user", "content": "Add."}


@pytest.mark.parametrize(
    "columns",
    [
        {"prompt": "Add."},
        {"messages": [{"role": "user", "content": "Add."}]},
        {"prompt": [{"role": "user", "content": "Add."}]},
    ],
)
def test_a_prompt_is_text_or_messages(write_rows, columns):
    (row,) = load_rows(write_rows([columns]))
    assert row.messages == [{"role": "user", "content": "Add."}]


@pytest.mark.parametrize(
    ("columns", "label"),
    [
        ({"label": 0}, "0"),
        ({"answer": "3"}, "3"),
        ({"ground_truth": 1.5}, "1.5"),
        ({"reward_model": {"ground_truth": "x"}}, "x"),
        ({"label": {"inputs": ["1"]}}, '{"inputs": ["1"]}'),
        ({"label": None, "answer": "3"}, "3"),
        ({"label": " ", "answer": "3"}, "3"),
        ({"label": ""}, None),
        ({}, None),
        ({"answer": 0.00001}, "0.00001"),
        ({"answer": 1e16}, "10000000000000000"),
        ({"answer": -2.5e-7}, "-0.00000025"),
        ({"answer": 123456789012345678901234567890}, "123456789012345678901234567890"),
        ({"answer": float("nan")}, None),
        ({"answer": float("nan"), "ground_truth": "3"}, "3"),
        ({"label": ["5"]}, "5"),
        ({"reward_model": '{"ground_truth": "x"}'}, "x"),
        ({"reward_model": '{"ground_truth": 1e-7}'}, "0.0000001"),
    ],
)
def test_labels_are_text(write_rows, columns, label):
    (row,) = load_rows(write_rows([{"prompt": "Add."} | columns]))
    assert row.label == label


@pytest.mark.parametrize(
    ("columns", "golds", "any_of"),
    [
        ({"label": "5"}, (), False),
        ({"label": ["5", 0.5]}, ("5", "0.5"), False),
        ({"golden_answers": ["5", "five"]}, ("5", "five"), True),
        ({"reward_model": {"ground_truth": {"target": ["5", "five"]}}}, ("5", "five"), True),
    ],
)
def test_several_answers_are_kept_apart(write_rows, columns, golds, any_of):
    (row,) = load_rows(write_rows([{"prompt": "Add."} | columns]))
    assert (row.gold.golds, row.gold.any_of) == (golds, any_of)


def test_the_label_of_a_parquet_map_is_read(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    rows = pa.table(
        {
            "prompt": ["Add."],
            "reward_model": pa.array([[("ground_truth", "7")]], pa.map_(pa.string(), pa.string())),
            "metadata": pa.array([[("opd_teacher", "math")]], pa.map_(pa.string(), pa.string())),
        }
    )
    parquet.write_table(rows, tmp_path / "maps.parquet")
    (row,) = load_rows(tmp_path / "maps.parquet")
    assert (row.label, row.tag) == ("7", "math")


def test_a_number_of_single_precision_keeps_its_written_form(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(
        pa.table({"prompt": ["Add.", "Go."], "answer": pa.array([0.1, None], pa.float32())}), tmp_path / "f.parquet"
    )
    assert [row.label for row in load_rows(tmp_path / "f.parquet")] == ["0.1", None]


def test_a_teacher_tag_that_is_not_a_number_is_none(write_rows, write_parquet):
    columns = [{"prompt": "Add.", "opd_teacher": float("nan"), "metadata": {"opd_teacher": float("nan")}}]
    for path in (write_rows(columns), write_parquet(columns)):
        (row,) = load_rows(path)
        assert row.tag is None


def test_json_text_of_a_jsonl_file_is_read_as_in_parquet(write_rows):
    messages = [{"role": "user", "content": "Add."}]
    columns = {"prompt": json.dumps(messages), "metadata": json.dumps({"opd_teacher": "math"})}
    (row,) = load_rows(write_rows([columns]))
    assert (row.messages, row.tag) == (messages, "math")


@pytest.mark.parametrize("column", ["prompt", "messages"])
def test_messages_that_end_with_the_assistant_are_refused(write_rows, column):
    messages = [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "7"}]
    with pytest.raises(UserError, match=f"jsonl:1: '{column}' ends with a message of the assistant"):
        load_rows(write_rows([{column: messages}]))


@pytest.mark.parametrize(
    "columns", [{"opd_teacher": "math"}, {"metadata": {"opd_teacher": "math"}}, {"extra_info": {"opd_teacher": "math"}}]
)
def test_the_teacher_tag_is_found(write_rows, columns):
    (row,) = load_rows(write_rows([{"prompt": "Add."} | columns]))
    assert row.tag == "math"


def test_the_line_number_is_the_last_resort_for_an_id(write_rows):
    rows = load_rows(
        write_rows([{"prompt": "a", "id": "x"}, {"prompt": "b", "extra_info": {"index": 40}}, {"prompt": "c"}])
    )
    assert [row.id for row in rows] == ["x", "40", "3"]


def test_an_id_written_twice_names_both_places(write_rows):
    path = write_rows([{"prompt": "a", "id": 5}, {"prompt": "b"}, {"prompt": "c", "id": "5"}])
    with pytest.raises(UserError, match=f"{path}:3: the id '5' is taken by {path}:1"):
        load_rows(path)


def test_an_index_that_recurs_gets_its_place(write_rows):
    first = write_rows([{"prompt": "a", "extra_info": {"index": 0}}], "math.jsonl")
    second = write_rows([{"prompt": "b", "extra_info": {"index": 0}}, {"prompt": "c"}], "code.jsonl")
    rows = load_rows([str(first), str(second)])
    assert [row.id for row in rows] == [f"0@{first}:1", f"0@{second}:1", "2"]


def test_a_file_named_twice_is_refused(write_rows):
    path = str(write_rows([{"prompt": "a"}]))
    with pytest.raises(UserError, match="name each once"):
        load_rows([path, path])


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("", "an empty line"),
        ("{}", "an empty row"),
        ('{"prompt": null}', "an empty row"),
        ('{"prompt": "a"', "not JSON"),
        ('["a"]', "a JSON object with a 'prompt' is expected, not list"),
        ('{"question": "a"}', "no column 'prompt' or 'messages'; columns: question"),
        ('{"prompt": " "}', "'prompt' is empty"),
        ('{"prompt": []}', "'prompt' is empty"),
        ('{"prompt": 3}', "'prompt' is neither text nor a list of messages"),
        ('{"prompt": [{"content": "a"}]}', "message 1 needs a 'role'"),
        ('{"prompt": [{"role": "user", "content": "a"}, {"role": "user"}]}', "message 2 needs a 'content'"),
        ('{"prompt": [{"role": "system", "content": "a"}]}', "needs a message of role 'user'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, problem):
    path = tmp_path / "train.jsonl"
    path.write_text(f'{{"prompt": "fine"}}\n{line}\n')
    with pytest.raises(UserError) as error:
        load_rows(path)
    place, _, message = str(error.value).partition(":2: ")
    assert place == str(path) and problem in message


def test_a_line_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"prompt": "fine"}\n{"prompt": "\xff"}\n')
    with pytest.raises(UserError, match=f"{path}:2: not JSON"):
        load_rows(path)


def test_a_bad_parquet_row_is_named(write_parquet):
    path = write_parquet([{"prompt": "fine"}, {"prompt": ""}])
    with pytest.raises(UserError, match=f"{path}:row 2: 'prompt' is empty"):
        load_rows(path)


def test_a_parquet_file_that_is_none_is_named(tmp_path):
    path = tmp_path / "train.parquet"
    path.write_text("prompt")
    with pytest.raises(UserError, match=f"{path}: not a readable parquet file"):
        load_rows(path)


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "train.jsonl"
    path.touch()
    with pytest.raises(UserError, match=f"{path}: the file is empty"):
        load_rows(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="absent.jsonl: no such file"):
        load_rows(tmp_path / "absent.jsonl")


def test_other_kinds_of_files_are_refused(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("prompt\nAdd.\n")
    with pytest.raises(UserError, match="train.csv: prompts are read from .jsonl and .parquet"):
        load_rows(path)


@pytest.mark.parametrize(
    ("columns", "label", "tests"),
    [
        ({"tests": '{"inputs": [1]}'}, None, '{"inputs": [1]}'),
        ({"tests": ["assert f()"]}, None, '["assert f()"]'),
        ({"ability": "code", "reward_model": {"ground_truth": "[1]"}}, None, "[1]"),
        ({"ability": "math", "reward_model": {"ground_truth": "1"}}, "1", None),
        ({"answer": "1"}, "1", None),
        ({"tests": "", "answer": "1"}, "1", None),
    ],
)
def test_rows_tell_code_from_math(tmp_path, columns, label, tests):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"prompt": "?"} | columns) + "\n")
    (row,) = load_rows(path)
    assert (row.label, row.tests) == (label, tests)
