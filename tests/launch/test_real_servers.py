"""Real servers on nodes of their own, for a real run on another: addresses, health, weights across the network."""

from __future__ import annotations

import json
import os
import shlex
import sys

import pytest
import yaml

from tests.chat_models import write_questions
from tests.cli.run_verb import write_config
from tests.launch.conftest import submit_job


@pytest.mark.slow
@pytest.mark.timeout(1800)  # several imports of everything on each node, on a machine that may be busy
def test_sglang_samples_on_another_node(cluster, chat_models, tmp_path):
    """rollout.sglang.sync: distributed, so that the server's node must reach the trainer's."""
    from megatron_gopd.servers.command import command, environment

    questions = write_questions(tmp_path / "train.jsonl", 4, opd_teacher=lambda number: ("math", "code")[number % 2])
    servers = {"sync": "distributed", "verify_every": 1}
    rollout = {"max_response_tokens": 6, "engine": "sglang", "sglang": servers, "max_logprob_abs_diff": 2e-5}
    run_file = write_config(tmp_path, chat_models, questions, rollout=rollout)
    words = command(chat_models["student"], "{port}", "float32", {"host": "{host}"})
    ours = {name: value for name, value in environment().items() if os.environ.get(name) != value}
    serve = shlex.join(["env", *(f"{name}={value}" for name, value in ours.items()), *words])
    options = ["--serve", serve, "--serve-nodes", 1, "--serve-urls", "rollout.sglang.urls", "--max-requeues", 0]
    job = submit_job(cluster, run_file, "", "--python", sys.executable, *options)
    ended = cluster.wait(job.id, timeout=1500)
    assert ended["JobState"] == "COMPLETED", job.log.read_text()
    rows = [json.loads(row) for row in (job.run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert "http://node3:" in yaml.safe_load((job.run / "config.yaml").read_text())["rollout"]["sglang"]["urls"][0]
