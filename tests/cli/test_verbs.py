"""The verbs in processes of their own, alone and under torchrun."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import yaml

from tests.chat_models import write_questions
from tests.cli.run_verb import run_verb, write_config
from tests.ranks import torchrun


@pytest.fixture
def questions(tmp_path):
    return write_questions(tmp_path / "train.jsonl", 4, opd_teacher=lambda number: ("math", "code")[number % 2])


def test_a_dry_run_needs_no_model_and_reads_back(tmp_path):
    config = write_config(
        tmp_path,
        dict.fromkeys(("student", "teacher", "other"), "/no/such/model"),
        "/none.jsonl",
        teachers={"math": {"model": "/another"}},
    )
    done = run_verb("train", config, "optimizer.lr=3e-6", "--dry-run")
    assert done.returncode == 0, done.stderr
    resolved = yaml.safe_load(done.stdout)
    assert (resolved["optimizer"]["lr"], resolved["algorithm"]["lambda"]) == (3e-6, 1.0)
    (tmp_path / "again.yaml").write_text(done.stdout)
    assert run_verb("train", tmp_path / "again.yaml", "--dry-run").stdout == done.stdout


def test_score_on_two_ranks_is_score_alone(tmp_path, chat_models):
    rows = [{"id": f"r{i}", "prompt_tokens": [5, 6, 7 + i], "response_tokens": [9] * (i + 1)} for i in range(3)]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ["score", "--model", chat_models["teacher"], "--input", source, "--dtype", "float32"]
    assert run_verb(*common, "--output", tmp_path / "alone.jsonl").returncode == 0
    torchrun(2, "-m", "megatron_gopd", *common, "--output", tmp_path / "two.jsonl", "--layout", "tp=2")
    alone, two = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("alone", "two")
    )
    assert [row["id"] for row in alone] == ["r0", "r1", "r2"]
    for one, other in zip(alone, two, strict=True):
        np.testing.assert_allclose(one["logprobs"], other["logprobs"], atol=1e-5)
        np.testing.assert_allclose(one["entropy"], other["entropy"], atol=1e-5)


def test_a_mistake_on_all_ranks_is_told_once(tmp_path, chat_models, questions):
    config = write_config(tmp_path, chat_models, questions)
    output = torchrun(2, "-m", "megatron_gopd", "train", config, "student.model=/no/model", fails_with=2)
    assert output.count("error: student: /no/model is no Hugging Face model directory") == 1


def test_a_fault_on_one_rank_ends_all_with_one_traceback(tmp_path):
    script = tmp_path / "one_rank_fails.py"
    script.write_text(
        "import sys, time, torch, torch.distributed as dist\n"
        "from pathlib import Path\n"
        "from megatron_gopd.ranks import ranks\n"
        "with ranks():\n"
        "    if dist.get_rank() == 1:\n"
        "        Path(sys.argv[1]).write_text(str(time.time()))\n"
        "        raise ValueError('the fault')\n"
        "    dist.all_reduce(torch.ones(1))\n"
    )
    raised = tmp_path / "raised"
    output = torchrun(2, script, raised, fails_with=1)
    assert time.time() - float(raised.read_text()) < 60  # without it, a peer waits for half an hour
    assert output.count("ValueError: the fault") == 1
    assert "Connection closed by peer" not in output


def test_view_writes_the_page_of_a_run(tmp_path):
    from tests.view.written import response, write_run

    run = write_run(tmp_path / "a", trajectories=[response(1)])
    done = run_verb("view", run)
    assert (done.returncode, done.stdout) == (0, f"{run.resolve() / 'view.html'}\n"), done.stderr


def test_view_of_what_is_no_run_is_a_mistake(tmp_path):
    done = run_verb("view", tmp_path)
    assert done.returncode == 2
    assert "is no run and holds none" in done.stderr
    assert "Traceback" not in done.stderr
