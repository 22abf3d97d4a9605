"""One check of where servers are: plan, submit, a dry run, the pre-flight and training refuse and warn alike."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist

from megatron_gopd.config import load_config
from megatron_gopd.errors import UserError
from megatron_gopd.launch import doctor
from megatron_gopd.launch.findings import verdict
from megatron_gopd.rollout import nodes
from tests.launch.conftest import ROOT

RUN = ROOT / "examples/paper/strong_to_weak.yaml"
NINE = ["rollout.sglang.count=9", "rollout.sglang.gpus=null"]
ON_ONE = ["rollout.sglang.nodes=1"]
REFUSED = (
    "rollout.sglang: 9 server(s) of 1 GPU(s) are more than the 8 GPU(s) of a node; lower rollout.sglang.count, which "
    "is of each node, or the sizes in rollout.sglang.options"
)
IDLE = "8 of the 16 GPUs have no server, and idle while the others sample"
VERBS = {
    "plan": ["plan", RUN, "--gpus", 16, "--models", ROOT / "examples/models"],
    "dry run": ["train", RUN, "--dry-run", "--gpus", 16],
    "submit": ["submit", RUN, "--nodes", 2, "--gpus-per-node", 8, "--dry-run"],
}


def given(verb: str, overrides: list[str]) -> list:
    flag = ["--set"] if verb == "submit" else []
    return [*VERBS[verb], *(part for one in overrides for part in (*flag, one))]


@pytest.fixture
def eight_gpus(monkeypatch):
    """This process is one of 16 ranks, eight on each of two nodes."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(dist, "get_world_size", lambda: 16)
    seen = [(f"node{rank // 8}", tuple("01234567")) for rank in range(16)]
    monkeypatch.setattr(dist, "all_gather_object", lambda found, mine: found.__setitem__(slice(None), seen))


@pytest.mark.parametrize("verb", VERBS)
def test_servers_that_do_not_fit_are_refused(invoke, verb):
    done = invoke(*given(verb, NINE))
    assert (done.code, done.out) == (2, "")
    assert done.err == f"error: {REFUSED}\n"


def test_the_pre_flight_refuses_them(eight_gpus):
    found = verdict("placement", lambda: doctor._placement(load_config(RUN, NINE), 2, 16))
    assert (found.verdict, found.text) == ("failed", REFUSED)


def test_training_refuses_them(eight_gpus):
    with pytest.raises(UserError) as caught:
        nodes.check_nodes(load_config(RUN, NINE))
    assert str(caught.value) == REFUSED


@pytest.mark.parametrize("verb", ["dry run", "submit"])
def test_gpus_that_would_idle_are_named(invoke, verb):
    done = invoke(*given(verb, ON_ONE))
    assert done.code == 0
    assert done.err == f"warning: {IDLE}\n"


def test_the_pre_flight_and_training_name_them(eight_gpus):
    config = load_config(RUN, ON_ONE)
    assert doctor._placement(config, 2, 16)[:2] == ("warning", IDLE)
    assert nodes.check_nodes(config)[1] == [IDLE]


def test_the_pre_flight_says_what_it_has_room_for(eight_gpus):
    assert doctor._placement(load_config(RUN), 2, 16)[:2] == ("ok", "room for 8 server(s) of rollout.sglang")


def test_gpus_that_ranks_were_not_shown_may_be_servers(eight_gpus, monkeypatch):
    """Eight are there, the trainer is shown six, and the servers have the others."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5")
    servers = ["rollout.sglang.count=2", "rollout.sglang.gpus=[[6], [7]]", "rollout.sglang.colocated=false"]
    assert nodes.gpus_here(load_config(RUN, servers)) == tuple("01234567")


def test_without_gpus_there_is_nothing_to_fit(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert doctor._placement(load_config(RUN, NINE), 2, 16)[0] == "ok"


def test_a_job_has_ranks_where_its_servers_are_not(invoke):
    servers = ["rollout.sglang.count=2", "rollout.sglang.gpus=[[6], [7]]", "rollout.sglang.colocated=false"]
    layouts = ["teachers.math.layout={tp: 2, ep: 2}"]
    done = invoke(*given("submit", [*servers, *layouts]))
    assert (done.code, done.err) == (0, "")
    assert "#SBATCH --ntasks-per-node=6\n" in done.out
    assert "--ranks 12 " in done.out


def test_points_of_a_sweep_with_other_ranks_are_no_array(invoke):
    sweep = ["--sweep", "rollout.sglang.options.tp-size=1,2", "--set", "rollout.sglang.gpus=null"]
    apart = ["--set", "rollout.sglang.colocated=false", "--set", "rollout.sglang.count=2"]
    done = invoke(*VERBS["submit"], *sweep, *apart)
    assert done.code == 2
    assert "--sweep: servers leave 4 or 6 GPUs of a node to train" in done.err


def test_a_count_of_gpus_is_of_a_dry_run(invoke):
    done = invoke("train", RUN, "--nodes", 2, "--dry-run")
    assert done.code == 2
    assert "--gpus, and --nodes with it, are of --dry-run" in done.err
