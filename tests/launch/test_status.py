"""How a run goes, from its folder alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture
def run(tmp_path) -> Path:
    """Four of ten steps done; its first job stopped, the second one failed."""
    path = tmp_path / "runs" / "tiny"
    (path / "checkpoints" / "step-00000004").mkdir(parents=True)
    (path / "config.yaml").write_text("run: {steps: 10}")
    row = {"timing/step_s": 2.0, "timing/rollout_s": 1.5, "tokens_per_s": 100.0}
    (path / "metrics.jsonl").write_text("".join(json.dumps({"step": step} | row) + "\n" for step in range(1, 5)))
    for attempt, said in enumerate([("interrupted", "USR1 after step 2"), ("failed", "RuntimeError: out of memory")]):
        folder = path / "slurm" / "job-7" / f"attempt-{attempt}"
        folder.mkdir(parents=True)
        (folder / "outcome.json").write_text(json.dumps({"kind": said[0], "message": said[1]}))
    return path


def test_step_speed_time_left_attempts_and_the_last_error(invoke, run):
    shown = invoke("status", run).out
    assert "step 4 of 10, 0:00:12 left" in shown
    assert "2.0 s (rollout 1.5), 100 tokens/s" in shown
    assert "newest   step-00000004" in shown
    assert "attempt  job-7/attempt-0: interrupted USR1 after step 2" in shown
    assert "error    RuntimeError: out of memory" in shown


def test_a_run_that_was_stopped_says_how_it_goes_on(invoke, run):
    (run / "slurm").rename(run / "no batch job")
    (run / "logs" / "latest").mkdir(parents=True)
    ends = "INFO: this rank ends: StoppedError: SIGINT after step 4 of 10. To go on:\n  megatron-gopd train it.yaml"
    (run / "logs" / "latest" / "rank-0.log").write_text(f"{ends}\nTraceback (most recent call last):\n  File ...\n")
    shown = invoke("status", run).out
    assert shown.endswith("\nstopped  SIGINT after step 4 of 10. To go on:\n  megatron-gopd train it.yaml\n")


def test_who_waits_is_told_beside_the_phases(invoke, run):
    row = {"step": 1, "timing/step_s": 2.0, "timing/rollout_s": 1.5, "timing/wait_for_rollout_s": 1.4}
    (run / "metrics.jsonl").write_text(json.dumps(row | {"timing/servers_paused_s": 0.2, "tokens_per_s": 100.0}))
    shown = invoke("status", run).out
    assert "2.0 s (rollout 1.5)" in shown
    assert "waits    for responses 1.4 servers paused 0.2" in shown


def test_for_programs(invoke, run):
    said = json.loads(invoke("status", run, "--json").out)
    assert (said["step"], said["steps"], said["eta_s"], said["finished"]) == (4, 10, 12.0, False)


def test_an_evaluation_before_the_first_step_is_no_step(invoke, run):
    evaluated = json.dumps({"step": 0, "eval/math": 0.3}) + "\n"
    (run / "metrics.jsonl").write_text(evaluated)
    assert "step 0 of 10, no step yet" in invoke("status", run).out
    row = json.dumps({"step": 1, "timing/step_s": 2.0, "tokens_per_s": 100.0})
    (run / "metrics.jsonl").write_text(evaluated + row)
    assert "step 1 of 10, 0:00:18 left" in invoke("status", run).out


COLUMNS = ("name", "node", "requests", "tokens_per_s", "restarts", "up")
SERVERS = {
    "rollout": [("rollout-node1-0", "node1", 512, 1834.2, 0, True), ("rollout-node2-0", "node2", 430, 15.0, 2, False)],
    "teachers-math": [("teachers-math-node1-0", "node1", 0, None, 0, True)],
}


@pytest.fixture
def served(run) -> Path:
    logs = run / "logs" / "attempt-1"
    logs.mkdir(parents=True)
    (run / "logs" / "latest").symlink_to("attempt-1")
    for name, rows in SERVERS.items():
        told = [dict(zip(COLUMNS, row, strict=True)) for row in rows]
        (logs / f"servers-{name}.json").write_text(json.dumps(told))
    return run


def test_servers_are_listed_node_by_node(invoke, served):
    shown = [line for line in invoke("status", served).out.splitlines() if line.startswith("servers")]
    assert shown == [
        "servers  node1: rollout-node1-0: 512 requests, 1834 tokens/s, 0 restarts",
        "servers  node1: teachers-math-node1-0: 0 requests, 0 restarts",
        "servers  node2: rollout-node2-0: 430 requests, 15 tokens/s, 2 restarts, away now",
    ]


def test_servers_by_node_for_programs(invoke, served):
    servers = json.loads(invoke("status", served, "--json").out)["servers"]
    assert {node: [each["requests"] for each in those] for node, those in servers.items()} == {
        "node1": [512, 0],
        "node2": [430],
    }


def test_a_run_without_servers_lists_none(invoke, run):
    assert "servers  " not in invoke("status", run).out
    assert json.loads(invoke("status", run, "--json").out)["servers"] == {}


def test_a_finished_run_has_no_time_left_and_no_error(invoke, run):
    (run / "config.yaml").write_text("run: {steps: 4}")
    (run / "model").mkdir()
    shown = invoke("status", run).out
    assert "step 4 of 4, finished" in shown
    assert "error" not in shown


def test_a_half_written_row_is_passed_over(invoke, run):
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "tim')
    assert "step 4 of 10" in invoke("status", run).out


def test_a_run_that_is_submitted_and_not_begun(invoke, tmp_path):
    (tmp_path / "new" / "slurm").mkdir(parents=True)
    assert "not begun" in invoke("status", tmp_path / "new").out


def test_a_folder_that_is_no_run_is_refused(invoke, tmp_path):
    done = invoke("status", tmp_path)
    assert done.code == 2
    assert "is not a run's folder" in done.err
