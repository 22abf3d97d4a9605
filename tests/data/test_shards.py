"""What a setting that names data may be: a file, a folder of shards, a glob; and what none of them is."""

from __future__ import annotations

import json

import pytest

from megatron_gopd.data import load_rows
from megatron_gopd.errors import UserError


@pytest.fixture
def put(tmp_path, monkeypatch):
    """put(NAME...) writes each as jsonl, a prompt that is its name; the working folder is the tests' own."""
    monkeypatch.chdir(tmp_path)

    def put(*names: str) -> None:
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(json.dumps({"prompt": name}) + "\n")

    return put


def prompts(named: str) -> list[str]:
    return [row.messages[0]["content"] for row in load_rows(named)]


def test_the_shards_of_a_folder_in_order(put):
    put("shards/b.jsonl", "shards/a.jsonl", "shards/README.md", ".cache/c.jsonl")
    assert prompts("shards") == ["shards/a.jsonl", "shards/b.jsonl"]


def test_parquet_shards(put, tmp_path):
    import pyarrow
    from pyarrow import parquet

    put("README.md")
    (tmp_path / "shards").mkdir()
    for number in (1, 0):
        table = pyarrow.Table.from_pylist([{"prompt": f"prompt {number}"}])
        parquet.write_table(table, tmp_path / "shards" / f"train-0000{number}-of-00002.parquet")
    assert prompts("shards") == ["prompt 0", "prompt 1"]


def test_a_downloaded_data_set_keeps_its_shards_one_folder_below(put):
    put("set/data/train-00000-of-00001.jsonl", "set/README.md")
    assert prompts("set") == ["set/data/train-00000-of-00001.jsonl"]


def test_a_glob_also_through_folders(put):
    put("shards/a.jsonl", "shards/b.jsonl", "shards/more/c.jsonl", "shards/d.txt")
    assert prompts("shards/*.jsonl") == ["shards/a.jsonl", "shards/b.jsonl"]
    assert prompts("shards/**/*.jsonl") == ["shards/a.jsonl", "shards/b.jsonl", "shards/more/c.jsonl"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(put):
    put("a[1].jsonl", "a1.jsonl")
    assert prompts("a[1].jsonl") == ["a[1].jsonl"]


@pytest.mark.parametrize(
    ("names", "named", "said"),
    [
        (["s/train-0.jsonl", "s/test-0.jsonl"], "s", "s holds several formats or splits of data; name one of them: "
         "s/test*.jsonl, s/train*.jsonl"),
        (["s/a.jsonl", "s/a.parquet"], "s", "s holds several formats or splits of data; name one of them: "
         "s/*.jsonl, s/*.parquet"),
        (["s/main/a.jsonl", "s/socratic/a.jsonl"], "s", "s: the data are in several folders; name one: "
         "s/main, s/socratic"),
        (["s/README.md"], "s", "s: no .jsonl or .jsonl.gz or .parquet file in it"),
        (["s/data-00000.arrow"], "s", "s: no .jsonl or .jsonl.gz or .parquet file in it; datasets.load_from_disk"),
        (["s/a.jsonl"], "s/*.parquet", "s/*.parquet: no file matches; a relative path counts from the working folder"),
        (["a.csv"], "a.csv", "a.csv: prompts are read from .jsonl and .parquet files; convert it to one of them"),
        (["s/a.jsonl"], ["s", "s/a.jsonl"], "the files of prompts are s/a.jsonl, s/a.jsonl; name each once"),
    ],
)  # fmt: skip
def test_what_is_not_one_set_of_prompts_is_refused(put, names, named, said):
    put(*names)
    with pytest.raises(UserError) as error:
        load_rows(named)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("named", "name"),
    [
        ("openai/gsm8k", "openai/gsm8k"),
        ("hf://datasets/openai/gsm8k/main/train.parquet", "openai/gsm8k"),
        ("https://huggingface.co/datasets/openai/gsm8k", "openai/gsm8k"),
    ],
)
def test_a_name_of_the_hub_is_told_how_to_download_it(put, named, name):
    put("README.md")
    with pytest.raises(UserError) as error:
        load_rows(named)
    assert str(error.value).endswith(f"hf download {name} --repo-type dataset --local-dir data/gsm8k")


@pytest.mark.parametrize("named", ["data/train.jsonl", "here/set", "none.jsonl", "a/b/c.parquet", "none"])
def test_a_path_is_not_taken_for_a_name_of_the_hub(put, named):
    put("here/README.md")
    with pytest.raises(UserError, match="no such file of prompts; a relative path counts from the working folder$"):
        load_rows(named)
