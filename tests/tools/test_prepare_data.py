from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from megatron_gopd.data import load_rows
from megatron_gopd.errors import UserError

SYSTEM = {"role": "system", "content": "\nWhen tackling complex reasoning tasks, you have access to actions.\n"}
INSTRUCTIONS = (
    "\n\nWrite Python code to solve the problem. Present the code in \n```python\nYour code\n```\nat the end."
)
TESTS = {"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]}


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def math(number: int, difficulty: float = 6.0, **columns) -> dict:
    """A row of DeepMath-103K."""
    solutions = {f"r1_solution_{n}": f"<think>{number}</think>" for n in (1, 2, 3)}
    published = {"question": f"What is {number} + 1?", "final_answer": str(number + 1), "difficulty": difficulty}
    return published | {"topic": "Mathematics -> Algebra"} | solutions | columns


def code(number: int, tests: object = TESTS, ability: str = "code", **columns) -> dict:
    """A row of Eurus-2-RL-Data."""
    user = {"role": "user", "content": f"Add {number} numbers.{INSTRUCTIONS}"}
    return {
        "data_source": "taco" if ability == "code" else "numina_olympiads",
        "prompt": [SYSTEM, user],
        "ability": ability,
        "reward_model": {
            "ground_truth": tests if isinstance(tests, str) or tests is None else json.dumps(tests),
            "style": "rule",
        },
        "extra_info": {"index": number, "split": "train"},
    } | columns


@pytest.fixture(scope="module")
def module(tool):
    return tool("prepare_data")


@pytest.fixture
def prepare(module, tmp_path):
    """prepare(math rows or path, code rows or path): the sources, once out.parquet is written."""

    def prepare(math_rows=(), code_rows=(), output="out.parquet", min_difficulty=6.0, **options):
        sources = []
        if math_rows:
            path = math_rows if isinstance(math_rows, Path) else write(tmp_path / "deepmath.parquet", math_rows)
            sources.append(module.deepmath(path, min_difficulty))
        if code_rows:
            path = code_rows if isinstance(code_rows, Path) else write(tmp_path / "eurus.parquet", code_rows)
            sources.append(module.eurus(path))
        module.prepare_data(sources, tmp_path / output, **options)
        return sources

    return prepare


def test_easy_questions_are_left_out_and_counted(prepare, tmp_path):
    (source,) = prepare([math(1, 5.5), math(2, 6.0), math(3, 9.5), math(4, -1.0)])
    assert (source.read, source.kept, source.left_out) == (4, 2, {"difficulty below 6": 2})
    assert [row.id for row in load_rows(tmp_path / "out.parquet")] == ["math-1", "math-2"]


def test_another_difficulty_may_be_asked_for(prepare):
    (source,) = prepare([math(1, 5.5), math(2, 6.0)], min_difficulty=5)
    assert source.kept == 2


@pytest.mark.parametrize("output", ["out.parquet", "out.jsonl"])
def test_a_math_row_reads_as_the_papers_prompt(prepare, tmp_path, output):
    prepare([math(1)], output=output)
    (row,) = load_rows(tmp_path / output)
    question = "What is 1 + 1?\nPlease reason step by step, and put your final answer within \\boxed{}."
    assert row.messages == [{"role": "user", "content": question}]
    assert (row.label, row.tag, row.data_source) == ("2", "math", "DeepMath-103K")


@pytest.mark.parametrize("output", ["out.parquet", "out.jsonl"])
def test_a_code_row_reads_as_the_papers_prompt(prepare, tmp_path, output):
    prepare(code_rows=[code(2)], output=output)
    (row,) = load_rows(tmp_path / output)
    question = (
        "Add 2 numbers.\nWrite Python code to solve the problem. Present the code in\n```python\nYour code\n```\n"
        "at the end.\nYou need to think first then write the Python code."
    )
    assert row.messages == [{"role": "user", "content": question}]
    assert (row.label, row.tag, row.data_source) == (None, "code", "taco")
    assert json.loads(row.columns["tests"]) == TESTS


@pytest.mark.parametrize("ending", [INSTRUCTIONS, INSTRUCTIONS.replace("\nat", " at"), ""])
def test_published_instructions_are_not_given_twice(prepare, tmp_path, ending):
    prepare(code_rows=[code(2, prompt=[{"role": "user", "content": "Add." + ending}])])
    (row,) = load_rows(tmp_path / "out.parquet")
    assert row.messages[0]["content"].startswith("Add.\nWrite Python code")
    assert row.messages[0]["content"].count("Write Python code") == 1


def test_the_code_part_alone_is_kept(prepare):
    (source,) = prepare(code_rows=[code(1, "4", "math"), code(2), code(3, {"inputs": [], "outputs": []})])
    assert source.kept == 1
    assert source.left_out == {"ability math": 1, "no tests with an output for each input": 1}


def test_tests_of_functions_and_of_long_numbers_are_kept_as_published(prepare, tmp_path):
    tests = '{"fn_name": "f", "inputs": [[' + "9" * 5000 + ']], "outputs": [[1]]}'
    prepare(code_rows=[code(1, tests)])
    (row,) = load_rows(tmp_path / "out.parquet")
    assert row.columns["tests"] == tests


def test_rows_of_many_batches_come_in_order(prepare, tmp_path):
    prepare([math(number) for number in range(300)])
    rows = load_rows(tmp_path / "out.parquet")
    assert [row.label for row in rows] == [str(number + 1) for number in range(300)]


def test_a_folder_is_read_shard_by_shard_without_what_is_held_out(prepare, tmp_path):
    folder = write(tmp_path / "data" / "train-00001-of-00002.parquet", [math(2)]).parent
    write(folder / "train-00000-of-00002.parquet", [math(1)])
    write(folder / "train-00002.jsonl", [math(3)])
    write(folder / "validation.parquet", [math(9)])
    prepare(folder)
    assert [(row.id, row.label) for row in load_rows(tmp_path / "out.parquet")] == [
        ("math-0", "2"),
        ("math-1", "3"),
        ("math-2", "4"),
    ]


# ---------------------------------------------------------------- --equal
def test_equal_takes_as_many_of_each(prepare, tmp_path):
    sources = prepare([math(n) for n in range(20)], [code(n) for n in range(4)], equal=True)
    rows = load_rows(tmp_path / "out.parquet")
    assert Counter(row.tag for row in rows) == {"math": 4, "code": 4}
    assert [(source.read, source.kept) for source in sources] == [(20, 4), (4, 4)]
    assert sources[0].left_out == {"to have as many of each": 16}


def test_equal_draws_from_the_seed(prepare, tmp_path):
    def drawn(name: str, seed: int) -> list[str]:
        prepare([math(n) for n in range(20)], [code(n) for n in range(4)], equal=True, seed=seed, output=name)
        return [row.id for row in load_rows(tmp_path / name)]

    assert drawn("a.parquet", 1) == drawn("b.parquet", 1) != drawn("c.parquet", 2)


# ---------------------------------------------------------------- what is refused, with nothing written
@pytest.fixture
def refusal(prepare, tmp_path):
    def refusal(*rows, **options) -> str:
        with pytest.raises(UserError) as caught:
            prepare(*rows, **options)
        assert not [path for path in tmp_path.iterdir() if "out" in path.name]
        return str(caught.value).replace(str(tmp_path), "TMP")

    return refusal


def test_a_missing_column_names_file_column_and_columns(refusal):
    rows = [{"question": "q", "answer": "a", "difficulty": 7.0}]
    expected = "TMP/deepmath.parquet: no column 'final_answer'; columns: question, answer, difficulty"
    assert refusal(rows) == expected


def test_a_missing_column_of_a_jsonl_names_the_line(refusal, tmp_path):
    path = write(tmp_path / "deepmath.jsonl", [math(1), {"question": "q"}])
    assert refusal(path) == "TMP/deepmath.jsonl:2: no column 'final_answer', 'difficulty'; columns: question"


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (math(2, final_answer=None), "final_answer is None; text is expected"),
        (math(2, None), "difficulty is None; a number is expected"),
        (math(2, question=""), "'question' is empty"),
    ],
)
def test_a_bad_math_row_is_named(refusal, row, told):
    assert refusal([math(1), row]).startswith(f"TMP/deepmath.parquet:row 2: {told}")


@pytest.mark.parametrize("tests", ["{", "[]", "{}", "4", None, '{"inputs": "1", "outputs": "1"}'])
def test_a_code_row_without_readable_tests_is_named(refusal, tests):
    assert refusal((), [code(1), code(2, tests)]).startswith("TMP/eurus.parquet:row 2: reward_model.ground_truth")


def test_a_source_of_which_nothing_is_left_is_refused(refusal):
    assert refusal([math(1)], [code(1, "4", "math")]) == "TMP/eurus.parquet: none of 1 rows is kept: 1 ability math"


def test_other_mistakes(refusal, tmp_path):
    (tmp_path / "empty").mkdir()
    assert refusal().startswith("nothing to prepare")
    assert refusal([math(1)], output="out.csv") == "TMP/out.csv: name a file that ends in .jsonl or .parquet"
    assert refusal(tmp_path / "empty").startswith("TMP/empty: no .jsonl or .parquet file in it")
    assert (
        refusal(tmp_path / "none.parquet")
        == "TMP/none.parquet: no such file of prompts; a relative path counts from the working folder"
    )


def test_an_existing_output_is_kept(prepare, tmp_path):
    (tmp_path / "out.parquet").write_text("mine")
    with pytest.raises(UserError, match="out.parquet exists; name a new file"):
        prepare([math(1)])
    assert (tmp_path / "out.parquet").read_text() == "mine"


def test_a_user_reads_a_table(run, tmp_path):
    deepmath = write(tmp_path / "deepmath.parquet", [math(1, 5.0), math(2), math(3)])
    eurus = write(tmp_path / "eurus.parquet", [code(1), code(2, "4", "math")])
    result = run(
        "prepare_data", tmp_path / "out.parquet", "--deepmath", deepmath, "--eurus", eurus, "--equal", "--seed", 7
    )
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    left_out = "1 difficulty below 6; 1 to have as many of each"
    assert ["math", "3", "1", *left_out.split()] in lines
    assert ["code", "2", "1", "1", "ability", "math"] in lines


def test_a_user_reads_one_line_of_a_mistake(run, tmp_path):
    result = run("prepare_data", tmp_path / "out.parquet", "--deepmath", tmp_path / "none.parquet")
    assert (result.returncode, result.stderr) == (
        2,
        f"error: {tmp_path}/none.parquet: no such file of prompts; a relative path counts from the working folder\n",
    )
