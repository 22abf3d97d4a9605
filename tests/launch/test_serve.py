"""A server on its node: announced when healthy, ended with the trainer, without a trainer's variables."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request

import pytest

from megatron_gopd.servers.environment import of_no_rank
from scripts.mini_slurm import until

NODE = "127.0.0.2"  # a name of this machine by which a server can listen on it alone


@pytest.fixture
def serve(tmp_path):
    """serve(command) -> the process that holds it; addresses go to tmp_path."""
    started = []

    def start(command: str) -> subprocess.Popen:
        arguments = ["--into", tmp_path, "--deadline", "20", "--", command]
        module = [sys.executable, "-m", "megatron_gopd.launch.serve"]
        environment = os.environ | {"SLURMD_NODENAME": NODE, "http_proxy": "http://127.0.0.1:9"}
        started.append(subprocess.Popen([*module, *map(str, arguments)], env=environment, cwd=tmp_path))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_it_is_announced_once_healthy_and_ends_when_told(serve, tmp_path):
    (tmp_path / "health").touch()
    process, announced = serve(f"{sys.executable} -m http.server {{port}} --bind {{host}}"), tmp_path / f"{NODE}.url"
    assert until(announced.exists, 60)
    url = announced.read_text().strip()
    assert urllib.request.urlopen(f"{url}/health").status == 200
    (tmp_path / "stop").touch()
    assert process.wait(30) == 0
    with pytest.raises(OSError):
        urllib.request.urlopen(f"{url}/health")


def test_one_that_dies_is_never_announced(serve, tmp_path):
    assert serve("false {port}").wait(60) == 1
    assert not (tmp_path / f"{NODE}.url").exists()


def test_it_inherits_no_variable_that_makes_it_a_rank():
    ours = {"PATH": "/bin", "CUDA_VISIBLE_DEVICES": "0,1", "HF_HOME": "/hf", "NCCL_DEBUG": "INFO"}
    theirs = dict.fromkeys(
        "SLURM_PROCID SLURM_JOB_ID SLURMD_NODENAME PMI_RANK PMIX_NAMESPACE OMPI_COMM_WORLD_RANK RANK WORLD_SIZE "
        "LOCAL_RANK MASTER_ADDR MASTER_PORT TORCHELASTIC_RUN_ID".split(),
        "1",
    )
    assert of_no_rank(ours | theirs) == ours
