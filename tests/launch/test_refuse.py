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
    "no-name-in-export": (["--export", "A B"], "--export 'A B': a variable's name is of letters, digits and _"),
    "option-in-export": (["--export=-x"], "--export '-x': a variable's name"),
    "two-in-export": (["--export", "A,B"], "--export 'A,B': a variable's name"),
    "line-in-export": (["--export", "A\nB"], "--export 'A\\nB': a variable's name"),
    "all-in-export": (["--export", "ALL"], "--export ALL: sbatch takes that for every variable there is; name each"),
    "dash": (["--set", "run.folder=-x"], "run.folder '-x' begins with a dash, as an option does"),
    "line": (["--set", 'run.folder="a\\nb"'], "holds a control character"),
    "python": (["--python=-c"], "--python '-c' begins with a dash"),
    "image": (["--container-image=--writable"], "--container-image '--writable' begins with a dash"),
    "comma": (["--container-image", "a", "--set", "run.folder='/a,/etc:/b'"], "told apart by , and :"),
    "key": (
        ["--set", "rollout.sglang.options.api-key=abc"],
        "options.api-key=... looks like a secret",
    ),
    "key-in-a-sweep": (["--sweep", "logging.wandb.api_key=abc,abcd"], "logging.wandb.api_key=... looks like a secret"),
    "key-to-serve": (["--serve", "server --port {port} --api-key abc"], "--serve ...api-key... looks like a secret"),
    "variable-to-serve": (["--serve", "env HF_TOKEN=abc server {port}"], "--serve ...HF_TOKEN... looks like a secret"),
    "key-to-sbatch": (["--sbatch", "comment=password=abc"], "--sbatch ...password... looks like a secret"),
    "nodes-without-end": (["--nodes", "1000000000"], "--nodes 1000000000: at most"),
    "gpus-without-end": (["--gpus-per-node", "1000000000"], "--gpus-per-node 1000000000: at most"),
    "chain-without-end": (["--chain", "1000000000"], "--chain 1000000000: at most"),
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
