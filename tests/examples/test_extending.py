"""docs/extending.md: what it shows runs as it stands, from a folder outside of the repository."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from megatron_gopd.config import load_config
from megatron_gopd.errors import UserError

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "examples/miniature/models"
PAGE = (ROOT / "docs/extending.md").read_text()


def files() -> dict[str, str]:
    """{name: text} of the page's blocks that begin with `# NAME.py`."""
    blocks = re.findall(r"(?:^(?: {4}.*)?\n)+", PAGE, re.MULTILINE)
    texts = [re.sub(r"^ {4}", "", block, flags=re.MULTILINE).strip() + "\n" for block in blocks]
    named = [(match[1], text) for text in texts if (match := re.match(r"# (\w+\.py)\n", text))]
    return dict(named)


def tree(folder: Path) -> dict:
    """Two steps of the miniature with all that is the user's own."""
    prompts = [{"prompt": f"0{n}A+1B+1C+1=", "label": "Z", "opd_teacher": "math"} for n in range(4)]
    (folder / "train.jsonl").write_text("".join(json.dumps(each) + "\n" for each in prompts))
    return {
        "run": {"name": "mine", "steps": 2},
        "student": {"model": str(MODELS / "base"), "dtype": "float32"},
        "teachers": {"math": {"model": str(MODELS / "math"), "dtype": "float32", "engine": "plain.py:Plain"}},
        "algorithm": {"type": "bounded.py:build", "bound": 1.5, "bonus": 0.01},
        "data": {"train": "train.jsonl", "batch_size": 4},
        "rollout": {"max_response_tokens": 19, "engine": "growing.py:engine"},
        "rewards": "short.py:short",
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With the page's files, and a run by the page's own script."""
    folder = tmp_path_factory.mktemp("mine")
    for name, text in files().items():
        (folder / name).write_text(text)
    (folder / "run.yaml").write_text(yaml.safe_dump(tree(folder)))
    return folder


def started(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)


@pytest.fixture(scope="module")
def rows(folder) -> list[dict]:
    done = started(folder, "run_it.py", "run.yaml")
    assert done.returncode == 0, done.stderr
    return [json.loads(row) for row in (folder / "runs/mine/metrics.jsonl").read_text().splitlines()]


def test_the_page_has_these_files():
    assert set(files()) == set("bounded.py squared.py sure.py short.py growing.py plain.py run_it.py kernel.py".split())


def test_the_objective_and_its_metrics(rows):
    assert [row["step"] for row in rows] == [1, 2]
    assert all(0 <= row["bounded_fraction"] <= 1 and "advantage_mean/math" in row for row in rows)


def test_it_takes_thirty_lines():
    assert len(files()["bounded.py"].splitlines()) <= 30


def test_the_reward_is_in_the_rows(rows):
    assert all(row["reward/math"] < 0 for row in rows)  # no response holds the label; each costs its length


def test_the_engine_s_responses_grow(rows):
    assert [row["response_tokens_mean"] <= 4 + 2 * row["step"] for row in rows] == [True, True]
    assert rows[0]["response_tokens_mean"] > 3


@pytest.fixture
def trained(folder, one_rank, monkeypatch):
    """trained(name, *overrides): the rows of such a run, in this process."""
    monkeypatch.chdir(folder)

    def trained(name: str, *overrides: str) -> list[dict]:
        from megatron_gopd.training.train import train

        train(load_config("run.yaml", [f"run.name={name}", "run.steps=1", *overrides]))
        return [json.loads(row) for row in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]

    return trained


def test_the_scorer_says_what_megatron_says(trained, rows):
    (row,) = trained("megatron", "teachers.math.engine=megatron")
    assert row["reverse_kl"] == pytest.approx(rows[0]["reverse_kl"], abs=1e-4)
    assert row["grad_norm"] == pytest.approx(rows[0]["grad_norm"], rel=1e-3)


@pytest.mark.parametrize(
    ("file", "overrides"),
    [("squared.py", ["rollout.samples_per_prompt=2"]), ("sure.py", ["algorithm.lambda=1.25"])],
)
def test_the_other_objectives_can_be_configured(folder, monkeypatch, file, overrides):
    """Which tries them."""
    monkeypatch.chdir(folder)
    config = load_config("run.yaml", [f"algorithm={{type: '{file}:build'}}", *overrides])
    assert config.algorithm.KIND == "own"


def test_the_kernel_s_example_runs(folder):
    found = runpy.run_path(str(folder / "kernel.py"))
    assert found["logprobs"].shape == found["entropy"].shape == (5,)


def test_an_engine_that_fails_is_told_with_its_line(folder, trained):
    (folder / "broken.py").write_text((folder / "growing.py").read_text().replace("4 + 2 * step", "4 / nothing"))
    with pytest.raises(UserError) as caught:
        trained("broken", "rollout.engine=broken.py:engine")
    told = "rollout.engine: broken.py:9: NameError: name 'nothing' is not defined (in: limit = min("
    assert str(caught.value).startswith(told)
    assert (folder / "runs/broken/metrics.jsonl").read_text() == ""


def test_a_scorer_that_gives_too_few_log_probs_is_refused(folder, trained):
    (folder / "few.py").write_text((folder / "plain.py").read_text().replace("[:, 0].numpy()", "[1:, 0].numpy()"))
    with pytest.raises(UserError, match="teachers.math.engine: few.py:Plain: score must give each of the 4 rows"):
        trained("few", "teachers.math.engine=few.py:Plain")


def test_what_is_no_engine_is_refused(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match="rollout.engine: write transformers, sglang, or FILE.py:CLASS for a rollout"):
        load_config("run.yaml", ["rollout.engine=vllm"])
