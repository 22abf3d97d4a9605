"""The pre-flight, on two processes that stand for two nodes."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path
from unittest import mock

import pytest
import torch

from megatron_gopd import machine
from megatron_gopd.launch import probes
from megatron_gopd.launch.findings import Finding, bad_nodes, report, verdict
from megatron_gopd.launch.inputs import NEEDS
from tests.chat_models import write_questions
from tests.cli.run_verb import run_verb, write_config
from tests.ranks import on_ranks


def examine_on_ranks(config: str, cases: dict[str, dict]) -> dict[str, list[tuple[str, str, str, str]]]:
    """For each case: variables, folders and made-up GPUs a rank, and the findings as (node, check, verdict, text)."""
    import torch.distributed as dist

    from megatron_gopd.config import load_config
    from megatron_gopd.launch.doctor import examine

    found, rank = {}, dist.get_rank()
    os.environ["SLURMD_NODENAME"] = f"node{rank + 1}"
    for name, case in cases.items():
        os.environ["CUDA_VISIBLE_DEVICES"] = case.get("gpus", ["0,1", "0,1"])[rank]
        overrides = [f"run.folder={case['folders'][rank]}"] if "folders" in case else []
        settings = load_config(config, [*overrides, *case.get("overrides", [])])
        with contextlib.ExitStack() as stack:
            for place, values in case.get("made up", {}).items():
                stack.enter_context(mock.patch(place, return_value=values[rank]))
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
            "other hardware": {"made up": {"megatron_gopd.launch.doctor.hardware": [{"gpu": "H100"}, {"gpu": "A100"}]}},
            "other versions": {"made up": {"megatron_gopd.launch.doctor.versions": [{"nccl": "2.30.7"}, {}]}},
            "two ranks a GPU": {"made up": {"torch.cuda.device_count": [1, 1]}},
            "old GPU": {
                "made up": {"megatron_gopd.machine.capability": [90, 75], "torch.cuda.get_device_name": ["H100", "T4"]},
                "overrides": ["student.dtype=bfloat16"],
            },
            "no GPU": {"made up": {"megatron_gopd.launch.probes.device_backend": ["nccl", "gloo"]}},
            "disk, resumed": {"overrides": ["checkpoint.keep=10000000", "run.name=resumed"]},
        }
        return on_ranks(2, examine_on_ranks, config=str(config), cases=cases)


def verdicts(found: list[tuple], check: str) -> dict[str, str]:
    return {node: verdict for node, named, verdict, _ in found if named == check}


def test_all_is_well(found):
    checks = {check for _, check, verdict, _ in found["well"] if verdict == "ok"}
    looked = {"versions", "hardware", "ranks", "all-reduce", "clock", "sandbox", "folder", "placement", "disk", *NEEDS}
    assert checks == looked
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


def test_another_gpu_is_no_reason_to_refuse_a_node(found):
    assert verdicts(found["other hardware"], "hardware") == {"node1": "ok", "node2": "warning"}
    assert ("node2", "hardware", "warning", "gpu A100, elsewhere H100") in found["other hardware"]


def test_a_version_that_a_node_lacks_is_found(found):
    assert ("node2", "versions", "failed", "nccl missing, elsewhere 2.30.7") in found["other versions"]


def test_more_ranks_than_gpus(found):
    texts = [text for _, check, verdict, text in found["two ranks a GPU"] if (check, verdict) == ("ranks", "failed")]
    assert len(texts) == 2
    assert texts[0].startswith("4 ranks have 2 GPU(s), and NCCL asks for one each")


def test_a_gpu_too_old_for_the_precision_that_is_asked_for(found):
    assert verdicts(found["old GPU"], "models") == {"node1": "ok", "node2": "failed"}
    [text] = [text for node, check, _, text in found["old GPU"] if (node, check) == ("node2", "models")]
    assert text.startswith("student (")
    assert "dtype bfloat16 needs a GPU of compute capability 8.0 (A100) or newer, and this one, T4, has 7.5" in text


def test_a_node_without_a_gpu_among_others(found):
    assert verdicts(found["no GPU"], "all-reduce") == {"node1": "ok", "node2": "failed"}


@pytest.fixture
def gpu(monkeypatch):
    """One GPU that computes, made up."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch, "ones", lambda *_, device: torch.zeros(1))


def test_a_gpu_without_transformer_engine_is_well(gpu, monkeypatch):
    monkeypatch.setattr(machine, "te_problem", lambda: "it is not installed")
    assert probes.gpus(1) == ("ok", "1 GPU(s), without Transformer Engine", "")


def test_what_a_transformer_engine_that_does_not_import_says(gpu, monkeypatch):
    monkeypatch.setattr(machine, "te_problem", lambda: "it does not import: ImportError: undefined symbol: _ZN3c10")
    finding = verdict("gpus", lambda: probes.gpus(1))
    assert finding.verdict == "failed"
    assert "it does not import: ImportError: undefined symbol: _ZN3c10" in finding.text


def test_a_gpu_less_than_promised(gpu):
    assert probes.gpus(2)[:2] == ("failed", "1 GPU(s) visible, 2 promised")


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
    assert {one["check"] for one in said["findings"]} == {
        "versions",
        "hardware",
        "gpus",
        "ranks",
        "all-reduce",
        "clock",
        "sandbox",
    }
    assert not list(Path(tmp_path).iterdir())
