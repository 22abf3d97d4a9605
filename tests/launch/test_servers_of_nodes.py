"""A job of several nodes whose run has real SGLang servers on each: started, updated and ended there."""

from __future__ import annotations

import json
import sys

import pytest

from megatron_gopd.launch.status import status
from scripts.mini_slurm import until
from tests.chat_models import write_questions
from tests.cli.run_verb import write_config
from tests.launch.conftest import submit_job


@pytest.mark.slow
@pytest.mark.timeout(1800)  # several imports of everything on each node, on a machine that may be busy
@pytest.mark.parametrize(
    ("nodes", "sync", "colocated"), [(2, "disk", False), (2, "distributed", False), (3, "disk", True)]
)
def test_servers_of_every_node_sample_what_is_trained_on(cluster, chat_models, tmp_path, nodes, sync, colocated):
    questions = write_questions(tmp_path / "train.jsonl", 12, opd_teacher=lambda number: ("math", "code")[number % 2])
    cpu = {"options": {"device": "cpu"}}  # or each takes a GPU of its own, of which the job has one a node
    servers = cpu | {"verify_every": 1, "sync_folder": str(tmp_path / "shared"), "sync": sync}
    servers |= {"colocated": colocated}
    rollout = {"max_response_tokens": 6, "engine": "sglang", "sglang": servers, "max_logprob_abs_diff": 2e-5}
    run_file = write_config(tmp_path, chat_models, questions, rollout=rollout)
    options = ["--python", sys.executable, "--max-requeues", 0, "--set", "data.batch_size=6"]
    job = submit_job(cluster, run_file, "", *options, nodes=nodes)
    ended = cluster.wait(job.id, timeout=1500)
    assert ended["JobState"] == "COMPLETED", job.log.read_text()
    assert [json.loads(row)["step"] for row in (job.run / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    logs = {path.name: path.read_text() for path in job.run.glob("logs/attempt-*/rollout-*.log")}
    names = [f"node{number}" for number in range(1, nodes + 1)]
    assert set(logs) == {f"rollout-{name}-0.log" for name in names}
    assert all("POST /generate" in log for log in logs.values())
    told = status(job.run).servers
    assert {node: [each.restarts for each in those] for node, those in told.items()} == {name: [0] for name in names}
    assert sum(each.requests for those in told.values() for each in those) >= 4  # two steps of two
    assert all(("POST /release_memory_occupation" in log) == colocated for log in logs.values())
    assert "api_key='***'" in logs["rollout-node2-0.log"].replace('"', "'").replace("'api_key': ", "api_key=")
    assert not list(job.run.glob("logs/attempt-*/.*")) and not list((tmp_path / "shared").glob("*"))
    assert until(lambda: not any(map(cluster.processes, names)), 20)
