"""The file that view writes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_gopd.errors import UserError
from megatron_gopd.view import view
from megatron_gopd.view.kept import Kept
from megatron_gopd.view.run import Run
from tests.view.written import HOSTILE, response, write_run

DATA = re.compile(r'<script type="application/json" id="data">(.*?)</script>', re.DOTALL)
SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


def data_of(page: Path) -> dict:
    return json.loads(DATA.search(page.read_text())[1])


def values(row: dict, columns: list[str]) -> dict[str, np.ndarray]:
    """The numbers of a packed row: ids, numbers of texts, and its columns."""
    parts = np.split(np.frombuffer(base64.b64decode(row["data"]), np.int32), 2 + len(row["columns"]))
    names = ["ids", "pieces", *(columns[at] for at in row["columns"])]
    kinds = [np.int32] * 2 + [np.float32] * len(row["columns"])
    return {name: part.view(kind) for name, part, kind in zip(names, parts, kinds, strict=True)}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "run"
    row = response(1, pieces=[*HOSTILE, "x" * 1_000_000], id=HOSTILE[0], teacher=HOSTILE[1], prompt=HOSTILE[2])
    config = {"run": {"name": HOSTILE[0], "steps": 40}}
    write_run(folder, trajectories=[row], config=config, **{HOSTILE[1]: 1.0})
    return view([folder])


def test_a_run_s_page_is_in_its_folder(hostile):
    assert hostile.name == "view.html"
    assert (hostile.parent / "config.yaml").exists()


def test_what_a_run_holds_ends_no_element(hostile):
    text = hostile.read_text()
    assert "<" not in DATA.search(text)[1]
    assert text.count("</script>") == 2  # of the data and of the page's own script


def test_what_a_run_holds_is_all_there(hostile):
    (run,) = data_of(hostile)["runs"]
    (row,) = run["rows"]
    assert (run["name"], row["id"], row["teacher"]) == (HOSTILE[0], HOSTILE[0], HOSTILE[1])
    assert HOSTILE[1] in run["metrics"]
    texts = [run["texts"][at] for at in values(row, run["columns"])["pieces"]]
    assert texts[:-1] == HOSTILE
    assert texts[-1] == "x" * 2000 + "… and 998,000 characters more"


def test_a_browser_runs_the_page_s_script_and_no_other(hostile):
    text = hostile.read_text()
    digest = base64.b64encode(hashlib.sha256(SCRIPT.search(text)[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text


def test_the_page_names_no_other_file(hostile):
    page = SCRIPT.sub("", DATA.sub("", hostile.read_text()))
    assert not re.search(r"https?:|src=|<link|@import|url\(", page)
    assert re.findall(r"https?://[^\"]+", SCRIPT.search(hostile.read_text())[1]) == ["http://www.w3.org/2000/svg"]


def test_numbers_are_those_of_the_run(tmp_path):
    row = response(3)
    path = write_run(tmp_path / "a", steps=3, reverse_kl=lambda step: 1 / step, trajectories=[row])
    (run,) = data_of(view([path]))["runs"]
    found = values(run["rows"][0], run["columns"])
    assert found["ids"].tolist() == row["response_tokens"].tolist()
    for name in ("student_logprobs", "teacher_logprobs", "advantage", "entropy"):
        np.testing.assert_array_equal(found[name], row[name])
    told = np.frombuffer(base64.b64decode(run["metrics"]["reverse_kl"]), np.float32)
    np.testing.assert_array_equal(told, np.array([1, 1 / 2, 1 / 3], np.float32))


def test_columns_that_a_response_does_not_have_are_left_out(tmp_path):
    rows = [response(1, scored=False), response(2)]
    (run,) = data_of(view([write_run(tmp_path / "a", trajectories=rows)]))["runs"]
    bare, whole = ({run["columns"][at] for at in row["columns"]} for row in run["rows"])
    logprobs, parts = ("teacher_logprobs", "reference_logprobs"), ("advantage_of_teacher", "advantage_beyond_teacher")
    assert whole - bare == {*logprobs, *parts}


def test_a_damaged_file_is_told_and_the_others_are_shown(tmp_path):
    path = write_run(tmp_path / "a", trajectories=[response(step) for step in (1, 2, 3)])
    (path / "trajectories" / "step-00000002.parquet").write_bytes(b"PAR1 and nothing")
    (run,) = data_of(view([path]))["runs"]
    assert [row["step"] for row in run["rows"]] == [1, 3]
    assert any("the kept responses of step 2 cannot be read" in note for note in run["notes"])


def test_a_file_of_another_version_is_told(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = write_run(tmp_path / "a", trajectories=[response(1)])
    for step, columns in (
        (2, {"step": [2], "text": ["x"]}),
        (3, {"step": [3], "pieces": ["x"], "response_tokens": [1]}),
    ):
        pyarrow.parquet.write_table(pyarrow.table(columns), path / "trajectories" / f"step-{step:08d}.parquet")
    (run,) = data_of(view([path]))["runs"]
    assert [row["step"] for row in run["rows"]] == [1]
    assert "the kept responses of step 2, 3 cannot be read, and are left out" in run["notes"]


def test_a_reward_that_is_no_number_is_left_out(tmp_path):
    (run,) = data_of(view([write_run(tmp_path / "a", trajectories=[response(1, reward=float("nan"))])]))["runs"]
    assert run["rows"][0]["reward"] is None


def test_a_long_prompt_is_shown_whole(tmp_path):
    (run,) = data_of(view([write_run(tmp_path / "a", trajectories=[response(1, prompt="x" * 50_000)])]))["runs"]
    assert run["texts"][run["rows"][0]["prompt"]] == "x" * 50_000


def test_what_does_not_fit_goes_evenly_and_is_told(tmp_path):
    run = Run.read(write_run(tmp_path / "a", trajectories=[response(step, tokens=200) for step in range(1, 31)]))
    kept = Kept(run, budget=100_000)
    steps = [row["step"] for row in kept.rows]
    assert 5 < len(steps) < 15
    assert (steps[0], steps[-1]) == (1, 30)
    assert max(np.diff(steps)) - min(np.diff(steps)) <= 1
    assert f"those of {len(steps)} of the 30 steps" in run.notes[-1]


def test_corrections_at_the_cap_are_counted(tmp_path):
    config = {"algorithm": {"rollout_correction": {"cap": 5.0}}}
    corrections = np.array([1, 5, 5, 0.5], np.float32)
    row = response(1, tokens=4, rollout_correction=corrections)
    assert Kept(Run.read(write_run(tmp_path / "a", config=config, trajectories=[row]))).clipped == (2, 4)


def test_several_runs_are_told_apart_by_what_differs(tmp_path):
    paths = [write_run(tmp_path / f"r{lr}", config={"optimizer": {"lr": lr}, "seed": 1}) for lr in (1, 2)]
    page = data_of(view(paths, tmp_path / "two.html"))
    assert [run["name"] for run in page["runs"]] == ["r1", "r2"]
    assert "optimizer.lr" in page["differing"]
    assert "seed" not in page["differing"]


def test_no_torch_is_loaded():
    code = "import sys, megatron_gopd.view; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_an_earlier_page_is_replaced(tmp_path):
    path = write_run(tmp_path / "a")
    view([path])
    assert view([path]).exists()


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.write_text("mine")])
def test_an_output_that_is_something_else_is_refused(tmp_path, make):
    make(tmp_path / "out")
    with pytest.raises(UserError, match=r"--output .*out"):
        view([write_run(tmp_path / "a")], tmp_path / "out")


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/view.html cannot be written \(.+\); name another file"):
        view([write_run(tmp_path / "a")], tmp_path / "file" / "view.html")
