"""What `submit` refuses by itself: exit code 2, one message with the mend, nothing written."""

from __future__ import annotations

import pytest

from megatron_gopd.errors import UserError
from megatron_gopd.launch import slurm
from megatron_gopd.launch.refuse import check_cluster, seconds_of
from megatron_gopd.launch.request import Request

CASES = {
    "layout": (["--set", "student.layout.tp=3"], "does not divide the 2 rank(s) it is given"),
    "time": (["--time", "5"], "leaves nothing before the stop signal, 600 s before the end"),
    "time-format": (["--time", "soon"], "write minutes, hours:minutes:seconds or days-hours:minutes"),
    "time-below-zero": (["--time=-1:00"], "--time '-1:00': write minutes, hours:minutes:seconds or days-hours"),
    "sbatch-array": (["--sbatch", "array=0-3"], "--sbatch 'array=0-3': submit writes array itself, for a --sweep"),
    "sbatch-nodes": (["--sbatch", "nodes=3"], "submit writes nodes itself, by --nodes; leave it out"),
    "value-in-export": (["--export", "TOKEN=abc"], "name the variable only"),
    "no-checkpoints": (["--set", "checkpoint.every=0"], "a requeued job would start from the beginning"),
    "no-checkpoints-chain": (["--set", "checkpoint.every=0", "--chain", "2"], "the next job of the chain would start"),
    "no-resume": (
        ["--set", "checkpoint.resume=never"],
        "so a requeued job would start from the beginning; to start anew",
    ),
    "sweep": (["--sweep", "algorithm.lambda"], "as in algorithm.lambda=1.0,1.25"),
    "sweep-key": (["--sweep", "algorithm.lamda=1,2"], "did you mean 'lambda'?"),
    "no-command": (["--serve-nodes", "1"], "--serve-nodes: what shall be served?"),
    "no-port": (["--serve", "server"], "holds no {port}"),
    "serve-quotes": (["--serve", "server '{port}"], "cannot be taken apart into words: No closing quotation"),
    "split": (["--serve", "server {port}"], "--serve-gpus-per-node 1 to 0 of the 1"),
    "nodes": (["--nodes", "0"], "--nodes 0: at least 1"),
    "sbatch": (["--sbatch", "--constraint=a"], "as in constraint=h100"),
    "sweep-twice": (["--sweep", "optimizer.lr=1e-5,1e-5"], "two runs the name 'tiny-lr1e-5'"),
    "container-runtime": (["--container-image", "a", "--container-runtime", "docker"], "choose pyxis or apptainer"),
    "container-mounts": (["--container-mounts", "/a:/a"], "name its --container-image"),
    "setup": (["--setup", "none.sh"], "--setup none.sh: no such file; it is sourced by bash on every node"),
    "setup-not-bash": (["--setup", "broken.sh"], "--setup broken.sh is not bash: "),
    "export": (["--export", "NONE_SUCH_*"], "--export 'NONE_SUCH_*' matches no variable of this shell"),
    "percent": (["--set", "run.folder=a%b"], "SLURM reads % in the name of a log file"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_refused(invoke, run_file, case):
    options, said = CASES[case]
    run_file.with_name("broken.sh").write_text("if\n")
    done = invoke("submit", run_file, "--nodes", 2, "--gpus-per-node", 1, "--dry-run", *options)
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert "abc" not in done.err
    assert not (run_file.parent / "runs").exists()


def test_without_slurm_only_a_dry_run_is_possible(invoke, run_file):
    options = ["submit", run_file, "--nodes", 2, "--gpus-per-node", 1]
    assert invoke(*options, "--dry-run").out.startswith("#!/bin/bash\n")
    done = invoke(*options)
    assert done.code == 2
    assert "no SLURM answers here" in done.err


@pytest.mark.parametrize(
    ("time", "seconds"), [("90", 5400), ("2:30", 150), ("1:00:00", 3600), ("1-12", 129600), ("2-00:30", 174600)]
)
def test_slurms_times(time, seconds):
    assert seconds_of(time) == seconds


def test_a_limit_of_the_accounting_is_not_taken_for_a_missing_account(run_file, monkeypatch, tmp_path):
    said = "allocation failure: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
    monkeypatch.setattr(slurm, "partitions", lambda names: [{"PartitionName": "gpu", "TotalNodes": "4"}])
    monkeypatch.setattr(slurm, "test_only", lambda script: said)
    with pytest.raises(UserError, match="Ask for fewer nodes, GPUs or jobs, or less --time"):
        check_cluster(Request(run_file, account="lab"), run_file, tmp_path, shared=True)


@pytest.mark.parametrize(
    ("listed", "share"),
    [
        ("96 gpu:a100:8(S:0-1)\n64 gpu:8\n", 8),
        ("48 gpu:a100:2,gpu:h100:2\n", 12),
        ("2 gpu:4\n", 1),
        ("64 gpu:1\n64 (null)\n", None),
        ("64 (null)\n", None),
    ],
)
def test_the_cpus_that_a_node_has_for_each_gpu(monkeypatch, listed, share):
    """Of the nodes with as many GPUs as are asked for, those with the fewest."""
    monkeypatch.setattr(slurm, "partitions", lambda names: [{"PartitionName": "gpu"}])
    monkeypatch.setattr(slurm, "ask", lambda *command: (0, listed, ""))
    assert slurm.cpus_per_gpu(None, 4) == share
