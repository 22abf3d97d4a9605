"""The pre-flight, on two processes that stand for two nodes."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from megatron_gopd.launch.findings import Finding, bad_nodes, report
from tests.chat_models import write_questions
from tests.cli.run_verb import run_verb, write_config
from tests.ranks import on_ranks


def examine_on_ranks(config: str, cases: dict[str, dict]) -> dict[str, list[tuple[str, str, str, str]]]:
    """For each case: variables and folders a rank, and the findings as (node, check, verdict, text)."""
    import torch.distributed as dist

    from megatron_gopd.config import load_config
    from megatron_gopd.launch.doctor import examine

    found, rank = {}, dist.get_rank()
    os.environ["SLURMD_NODENAME"] = f"node{rank + 1}"
    for name, case in cases.items():
        os.environ["CUDA_VISIBLE_DEVICES"] = case.get("gpus", ["0,1", "0,1"])[rank]
        overrides = [f"run.folder={case['folders'][rank]}"] if "folders" in case else []
        settings = load_config(config, [*overrides, *case.get("overrides", [])])
        findings = examine(settings, gpus_per_node=2, ranks=case.get("ranks", 4), port=case.get("port"))
        found[name] = [(one.node, one.check, one.verdict, one.text) for one in findings]
        dist.barrier()
    return found


@pytest.fixture(scope="module")
def found(chat_models, tmp_path_factory):
    """Findings of each case, on two ranks."""
    folder = tmp_path_factory.mktemp("doctor")
    questions = write_questions(folder / "train.jsonl", 4, opd_teacher=lambda number: ("math", "code")[number % 2])
    config = write_config(folder, chat_models, questions)
    earlier = folder / "runs" / "resumed" / "checkpoints" / "step-00000001"
    earlier.mkdir(parents=True)
    for name in "ab":
        (earlier / name).touch()
        os.truncate(earlier / name, 2**43)  # of holes
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        cases = {
            "well": {},
            "a GPU less": {"gpus": ["0,1", "0"]},
            "two folders": {"folders": [str(folder / "one"), str(folder / "other")]},
            "layout": {"overrides": ["student.layout.tp=2"], "ranks": 3},
            "port": {"port": taken.getsockname()[1]},
            "disk": {"overrides": ["checkpoint.keep=1000000000"]},
            "disk, resumed": {"overrides": ["checkpoint.keep=10000000", "run.name=resumed"]},
        }
        return on_ranks(2, examine_on_ranks, config=str(config), cases=cases)


def verdicts(found: list[tuple], check: str) -> dict[str, str]:
    return {node: verdict for node, named, verdict, _ in found if named == check}


def test_all_is_well(found):
    checks = {check for _, check, verdict, _ in found["well"] if verdict == "ok"}
    assert checks == {"versions", "all-reduce", "clock", "folder", "models", "disk"}
    assert not [verdict for _, _, verdict, _ in found["well"] if verdict == "failed"]


def test_the_node_with_a_gpu_less_is_found(found):
    assert verdicts(found["a GPU less"], "gpus") == {"node1": "warning", "node2": "failed"}


def test_a_folder_that_is_not_shared_is_found(found):
    assert verdicts(found["two folders"], "folder") == {"node1": "ok", "node2": "failed"}


def test_a_layout_that_does_not_fit_the_ranks_of_the_run(found):
    assert verdicts(found["layout"], "models") == {"node1": "failed", "node2": "failed"}
    assert any("which does not divide the 3" in text for _, check, _, text in found["layout"] if check == "models")


def test_a_port_in_use_is_found_on_the_first_node(found):
    assert verdicts(found["port"], "port") == {"node1": "failed", "node2": "ok"}


def test_too_little_room_for_the_checkpoints(found):
    assert verdicts(found["disk"], "disk") == {"node1": "failed", "node2": "failed"}


def test_the_checkpoints_of_an_earlier_attempt_need_no_further_room(found):
    assert verdicts(found["disk, resumed"], "disk") == {"node1": "ok", "node2": "ok"}


def test_the_bandwidth_of_the_all_reduce_is_measured(found):
    assert any(text.startswith("gloo, 2 nodes: ") and text.endswith(" GB/s") for *_, text in found["well"])


def test_a_node_is_to_blame_only_where_others_pass():
    ours = [Finding(f"node{number}", "models", "failed", "no such file") for number in (1, 2)]
    assert bad_nodes(ours) == []
    theirs = [Finding("node1", "gpus", "ok", "8"), Finding("node2", "gpus", "failed", "7", "nvidia-smi")]
    assert bad_nodes([*ours, *theirs]) == ["node2"]
    assert report(theirs).splitlines()[-1].endswith("-> nvidia-smi")


def test_one_machine_for_programs(tmp_path):
    done = run_verb("doctor", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["ok"]
    assert {one["check"] for one in said["findings"]} == {"versions", "gpus", "all-reduce", "clock"}
    assert not list(Path(tmp_path).iterdir())
