"""Which processes that srun started are ranks."""

from __future__ import annotations

import os

import pytest

from megatron_gopd.srun import adopt_srun

OURS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
STEP = {"SLURM_JOB_ID": "71234", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "4"}


@pytest.fixture
def adopt(monkeypatch):
    """adopt(**variables) -> what torch reads, after adopt_srun."""

    def call(**variables: str) -> dict[str, str]:
        monkeypatch.setattr(os, "environ", {"PATH": os.environ["PATH"]} | variables)
        adopt_srun()
        return {name: os.environ[name] for name in OURS if name in os.environ}

    return call


def test_a_task_of_several_is_a_rank(adopt):
    expected = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "node7", "MASTER_PORT": "21234"}
    assert adopt(**STEP, SLURM_STEP_NODELIST="node7,node9") == expected


def test_where_the_first_rank_listens_can_be_given(adopt):
    found = adopt(**STEP, SLURM_STEP_NODELIST="node[7-8]", MASTER_ADDR="10.0.0.1", MASTER_PORT="5")
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("10.0.0.1", "5")


def test_a_batch_script_and_a_single_task_are_no_ranks(adopt):
    assert adopt(SLURM_JOB_ID="7", SLURM_NTASKS="8", SLURM_PROCID="0") == {}
    assert adopt(**STEP | {"SLURM_STEP_NUM_TASKS": "1"}) == {}


def test_torchrun_has_the_last_word(adopt):
    assert adopt(**STEP, RANK="0", WORLD_SIZE="2") == {"RANK": "0", "WORLD_SIZE": "2"}
