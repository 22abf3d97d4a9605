"""What the batch script does with its job, by sbatch itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys

import pytest

from megatron_gopd.errors import UserError
from megatron_gopd.launch import slurm
from scripts.mini_slurm import until
from tests.chat_models import write_questions
from tests.cli.run_verb import write_config
from tests.launch.conftest import submit_job, write_run

SERVER = f"{sys.executable} -m http.server {{port}} --directory {{here}}"
FINISHES = "train() { say 0 finished; }"
# each attempt gets one checkpoint further, and waits to be told to stop
STOPS_ONCE = """
train() {
    [[ $attempt == 0 ]] || { say 0 finished; return; }
    trap 'checkpoint 7; say 75 interrupted "after step 7"; exit 75' USR1 TERM
    touch "$run/here-$SLURM_PROCID"
    for _ in {1..3000}; do sleep 0.1; done
}
"""
TRAINS = "train() { touch $run/here-$SLURM_PROCID; sleep 600 & wait $!; }"
REFUSES_THE_FIRST_NODE = """
doctor() {
    bad=$(head -1 "$(dirname "$MEGATRON_GOPD_OUTCOME")/nodes")
    ((attempt)) || [[ $SLURMD_NODENAME != "$bad" ]] || { echo "$bad" >"${@: -1}"; say 2 error 'no GPU'; }
}
train() { say 0 finished; }
"""
STOPS_THE_FIRST_OF_A_CHAIN = """
train() {
    checkpoint "$SLURM_JOB_ID"
    if [[ -e $run/once ]]; then say 0 finished; else touch "$run/once"; say 75 interrupted; fi
}
"""
# the last task of an array has the number of the whole array for its own
FAILS_ONCE_AS_THE_LAST_OF_A_SWEEP = """
train() {
    if ((SLURM_ARRAY_TASK_ID == 0)); then sleep 15; elif ((attempt == 0)); then say 1 failed; return; fi
    say 0 finished
}
"""
NEVER_HEALTHY = ["--serve", "sleep {port}", "--serve-deadline", 3, "--serve-nodes", 1, "--max-requeues", 0]
# jobs that need nothing of their tests: they wait for SLURM beside each other
ALONE = {
    "finishes": (FINISHES, []),
    "fails": ("train() { say 1 failed 'a bug'; }", []),
    # whichever rank meets it; the others leave the last word to it
    "mistake": ("train() { ((SLURM_PROCID)) || sleep 60; echo 'error: no such key'; say 2 error 'no such key'; }", []),
    "flaky": ("train() { checkpoint $((attempt + 1)); say 1 failed 'a flaky node'; }", ["--max-requeues", 1]),
    "refused": (REFUSES_THE_FIRST_NODE, []),
    "refused-excluding": (REFUSES_THE_FIRST_NODE, ["--exclude", "node1"]),
    "chain": (STOPS_THE_FIRST_OF_A_CHAIN, ["--chain", 2]),
    "sweep": ('train() { echo "$@"; say 0 finished; }', ["--sweep", "optimizer.lr=1e-5,2e-5"]),
    "sweep-fails": (FAILS_ONCE_AS_THE_LAST_OF_A_SWEEP, ["--sweep", "optimizer.lr=1e-5,2e-5"]),
    "unhealthy": (FINISHES, NEVER_HEALTHY),
    "several-partitions": (FINISHES, ["--partition", "main,accounted"]),
}
ON_ONE_NODE = ("refused-excluding", "chain", "sweep", "sweep-fails", "unhealthy", "several-partitions")


# what SLURM's signal does when it comes as the script asks what has become of its job
SQUEUE = """#!/bin/bash
kill -TERM $PPID $$
exec {squeue} "$@"
"""
STOPS_AT_ONCE = "train() { ((attempt)) && { say 0 finished; return; }; checkpoint 7; say 75 interrupted; }"


@pytest.fixture(scope="module")
def alone(cluster, tmp_path_factory):
    """{name: job} of ALONE, all submitted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REAL_PYTHON", sys.executable)
        jobs = {}
        for name, (play, options) in ALONE.items():
            run_file, nodes = write_run(tmp_path_factory.mktemp(name)), 1 if name in ON_ONE_NODE else 2
            jobs[name] = submit_job(cluster, run_file, play, "--export", "REAL_PYTHON", *options, nodes=nodes)
    yield jobs
    for job in jobs.values():
        cluster("scancel", job.id, check=False)


@pytest.fixture
def begun(submit):
    """begun(play, ...) -> a job whose last rank has begun to train."""

    def call(play: str, *options, nodes: int = 2, **counts):
        job = submit(play, *options, nodes=nodes, **counts)
        assert until((job.run / f"here-{nodes - 1}").exists, 240), job.log.read_text()
        return job

    return call


def test_a_run_that_finishes(cluster, alone):
    assert cluster.wait(alone["finishes"].id)["JobState"] == "COMPLETED"
    assert "finished" in alone["finishes"].log.read_text()


def test_a_run_goes_where_one_of_several_partitions_has_room(cluster, alone):
    assert cluster.wait(alone["several-partitions"].id)["Partition"] == "main"


def test_every_component_node_and_rank_has_its_log(cluster, submit):
    job = submit("doctor() { echo well; }; train() { echo rank $SLURM_PROCID; say 0 finished; }", gpus=2)
    cluster.wait(job.id)
    first, second = (job.run / "slurm" / "latest" / "nodes").read_text().split()
    logs = {path.name for path in (job.run / "slurm" / "latest").glob("*.log")}
    trainers = {
        f"trainer-{node}-rank-{2 * i + local}.log" for i, node in enumerate((first, second)) for local in (0, 1)
    }
    assert logs == trainers | {f"doctor-{first}.log", f"doctor-{second}.log"}
    assert (job.run / "slurm" / "latest" / f"trainer-{second}-rank-3.log").read_text() == "rank 3\n"
    assert (job.run / "slurm" / "latest").readlink().as_posix() == f"job-{job.id}/attempt-0"


def test_the_time_limits_signal_stops_saves_requeues_and_goes_on(cluster, begun):
    job = begun(STOPS_ONCE)
    cluster("scancel", "--batch", "--signal=USR1", job.id)  # what --signal=B:USR1 does
    ended = cluster.wait(job.id)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")
    assert "stopped after a checkpoint; requeued" in job.log.read_text()


def test_a_run_that_cannot_stop_in_time_is_ended_and_requeued(cluster, begun):
    """At the limit itself SLURM would end the job for good."""
    never = """train() {
        ((attempt)) && { say 0 finished; return; }
        trap '' USR1 TERM; touch "$run/here-$SLURM_PROCID"; for _ in {1..600}; do sleep 1; done
    }"""
    job = begun(never, "--stop-before", 5)
    cluster("scancel", "--batch", "--signal=USR1", job.id)
    ended = cluster.wait(job.id, timeout=120)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")
    assert "no step has ended since; the trainer is ended" in job.log.read_text()


def test_a_controller_that_is_busy_is_asked_again(cluster, submit, monkeypatch, tmp_path):
    squeue = tmp_path / "squeue"
    squeue.write_text(
        f'#!/bin/bash\n[ -e {tmp_path}/asked ] && exec {shutil.which("squeue")} "$@"\ntouch {tmp_path}/asked; exit 1'
    )
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    job = submit("train() { ((attempt)) && { say 0 finished; return; }; say 75 interrupted; }")
    ended = cluster.wait(job.id)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), job.log.read_text()


def test_a_stop_file_stops_and_does_not_requeue(cluster, begun):
    job = begun(STOPS_ONCE)
    (job.run / "slurm" / "stop").touch()
    ended = cluster.wait(job.id)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "0")
    assert json.loads((job.run / "slurm" / "latest" / "outcome.json").read_text())["exit_code"] == 75


def test_a_stop_file_stops_the_rest_of_a_chain(cluster, begun):
    job = begun(STOPS_ONCE, "--chain", 2)
    (job.run / "slurm" / "stop").touch()
    second = re.search(r"and after it (\d+)", job.told)[1]
    assert cluster.wait(second)["JobState"] == "COMPLETED"
    assert "not begun, as " in job.log.with_name(f"job-{second}.log").read_text()


def test_a_cancelled_job_is_not_requeued(cluster, begun):
    job = begun(TRAINS)
    cluster("scancel", job.id)
    ended = cluster.wait(job.id)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "0")


def test_a_server_that_dies_ends_the_trainer(cluster, begun, tmp_path, monkeypatch):
    (tmp_path / "health").touch()
    monkeypatch.setenv("REAL_PYTHON", sys.executable)
    until_told = f"{SERVER.format(here=tmp_path, port='{port}')} & while [ ! -e {tmp_path}/die ]; do sleep 0.1; done"
    options = ["--serve", f"bash -c '{until_told}; kill $!'", "--serve-nodes", 1, "--max-requeues", 0]
    job = begun(TRAINS, "--export", "REAL_PYTHON", *options, nodes=1)
    (tmp_path / "die").touch()
    assert cluster.wait(job.id)["JobState"] == "FAILED"  # long before the trainer would end by itself
    assert "a server has ended" in job.log.read_text()


def test_one_server_of_two_that_dies_ends_the_trainer(cluster, begun, tmp_path, monkeypatch):
    (tmp_path / "health").touch()
    monkeypatch.setenv("REAL_PYTHON", sys.executable)
    until_told = (
        f"{SERVER.format(here=tmp_path, port='{port}')} & until [ -e {tmp_path}/die-$(hostname) ]; do sleep 0.1; done"
    )
    options = ["--serve", f"bash -c '{until_told}; kill $!'", "--serve-nodes", 2, "--max-requeues", 0]
    job = begun(TRAINS, "--export", "REAL_PYTHON", *options, nodes=1)
    (tmp_path / "die-node3").touch()
    assert cluster.wait(job.id, timeout=60)["JobState"] == "FAILED"
    assert "a server has ended" in job.log.read_text()


def test_a_users_mistake_ends_the_job(cluster, alone):
    ended = cluster.wait(alone["mistake"].id)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0")
    assert "error: no such key" in alone["mistake"].log.read_text()


def test_failures_without_progress_end_after_three_attempts(cluster, alone):
    ended = cluster.wait(alone["fails"].id)
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "2")
    assert "three attempts in a row have written no checkpoint" in alone["fails"].log.read_text()


def test_requeues_are_capped(cluster, alone):
    ended = cluster.wait(alone["flaky"].id)
    assert (ended["JobState"], ended["Restarts"]) == ("FAILED", "1")
    assert "1 requeues are allowed" in alone["flaky"].log.read_text()


def test_a_node_that_fails_the_pre_flight_is_excluded(cluster, alone):
    ended = cluster.wait(alone["refused"].id)
    assert ended["JobState"] == "COMPLETED"
    refused = re.search(r"the pre-flight refuses (node\d)", alone["refused"].log.read_text())
    assert refused[1] in ended["ExcNodeList"]


def test_a_node_that_was_excluded_by_hand_stays_so(cluster, alone):
    ended = cluster.wait(alone["refused-excluding"].id)
    assert ended["JobState"] == "COMPLETED"
    assert ended["ExcNodeList"] in ("node[1-2]", "node1,node2", "node1,node3")  # SLURM writes the first both ways


def test_a_chain_runs_one_after_the_other(cluster, alone):
    job = alone["chain"]
    second = re.search(rf"job {job.id}, and after it (\d+)", job.told)[1]
    assert cluster.wait(job.id)["JobState"] == cluster.wait(second)["JobState"] == "COMPLETED"
    assert "the next job of the chain goes on" in job.log.read_text()
    assert f"scancel {job.id} {second}\n" in job.told


def test_a_sweep_is_an_array_with_a_run_a_value(cluster, alone):
    job = alone["sweep"]
    for task, value in enumerate(("1e-5", "2e-5")):
        assert cluster.wait(f"{job.id}_{task}")["JobState"] == "COMPLETED"
        (log,) = job.run.with_name(f"tiny-lr{value}").glob("slurm/latest/trainer-node*-rank-0.log")
        assert f"optimizer.lr={value} run.name=tiny-lr{value}" in log.read_text()


def test_a_run_of_a_sweep_is_requeued_by_itself(cluster, alone):
    job = alone["sweep-fails"].id
    ended = [cluster.wait(f"{job}_{task}") for task in (0, 1)]
    assert [(one["JobState"], one["Restarts"]) for one in ended] == [("COMPLETED", "0"), ("COMPLETED", "1")]


def test_a_server_that_is_never_healthy_ends_the_job(cluster, alone):
    assert cluster.wait(alone["unhealthy"].id)["JobState"] == "FAILED"
    assert "0 of 1 servers were healthy" in alone["unhealthy"].log.read_text()


def test_preemption_requeues_and_goes_on(cluster, begun):
    job = begun(STOPS_ONCE, nodes=3)
    cluster("sbatch", "-p", "urgent", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1")
    ended = cluster.wait(job.id)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), job.log.read_text()


def test_a_signal_that_comes_late_does_not_end_the_requeue(cluster, submit, tmp_path, monkeypatch):
    squeue = tmp_path / "bin" / "squeue"
    squeue.parent.mkdir()
    squeue.write_text(SQUEUE.format(squeue=shutil.which("squeue")))
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}:{os.environ['PATH']}")
    job = submit(STOPS_AT_ONCE, "--export", "PATH", nodes=1)
    ended = cluster.wait(job.id)
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), job.log.read_text()


def test_a_node_that_crashes_brings_the_job_to_other_nodes(cluster, begun):
    job = begun(
        "train() { [[ $attempt != 0 ]] && { say 0 finished; return; }; touch $run/here-$SLURM_PROCID; sleep 600; }"
    )
    crashed = (job.run / "slurm" / "latest" / "nodes").read_text().split()[1]
    cluster.kill_node(crashed)
    ended = cluster.wait(job.id)
    cluster.revive()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")
    assert crashed not in (job.run / "slurm" / "latest" / "nodes").read_text()


@pytest.mark.timeout(900)  # two imports of everything on each node, on a machine that may be busy
def test_a_real_run_on_two_nodes(cluster, submit, chat_models, tmp_path, run_file):
    questions = write_questions(tmp_path / "train.jsonl", 4, opd_teacher=lambda number: ("math", "code")[number % 2])
    write_config(tmp_path, chat_models, questions).replace(run_file)
    job = submit("", "--python", sys.executable)
    assert cluster.wait(job.id, timeout=800)["JobState"] == "COMPLETED", job.log.read_text()
    assert [json.loads(row)["step"] for row in (job.run / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    report = (job.run / "slurm" / "latest" / "doctor-node1.log").read_text()
    # a warning where the machine is busy: the speed is a fact of the hour
    assert re.search(r"^(ok  |WARN) all-reduce +node1,node2: gloo, 2 nodes: \d", report, re.MULTILINE), report


PLACEMENTS = {
    # options, who serves, GPUs of the first server, of the first rank
    "split": (["--serve-gpus-per-node", 1], ["node1", "node2"], "0", "1"),
    "disjoint": (["--serve-nodes", 1], ["node3"], "0,1", "0,1"),
    "heterogeneous": (["--serve-nodes", 1, "--serve-gpus-per-node", 1], ["node3"], "0", "0,1"),
}


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_servers_are_placed_announced_and_ended(cluster, submit, tmp_path, monkeypatch, placement):
    options, serving, served_gpus, gpus = PLACEMENTS[placement]
    (tmp_path / "health").touch()
    monkeypatch.setenv("REAL_PYTHON", sys.executable)
    play = 'train() { echo "gpus $CUDA_VISIBLE_DEVICES"; echo "${@: -1}"; say 0 finished; }'
    server = SERVER.format(here=tmp_path, port="{port}")
    # a key that takes a list of texts: what counts here is that the addresses arrive in it
    options = [*options, "--serve-urls", "data.train"]
    job = submit(play, "--serve", server, "--export", "REAL_PYTHON", *options, gpus=2)
    assert cluster.wait(job.id)["JobState"] == "COMPLETED", job.log.read_text()
    latest = job.run / "slurm" / "latest"
    told, addresses = (latest / "trainer-node1-rank-0.log").read_text().splitlines()
    assert told == f"gpus {gpus}"
    assert re.findall(r"http://(\w+):\d+", addresses) == serving
    assert addresses.startswith("data.train=[http://")
    assert f"{serving[0]}, GPUs {served_gpus}: " in (latest / f"server-{serving[0]}.log").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--nodes", 9], "the partition main has 3"),
        (["--nodes", 9, "--partition", "main,urgent"], "the partition main has 3, urgent has 3"),
        (["--partition", "accounted"], "accounted needs one: name it with --account"),
        (["--partition", "main,nope"], "there is no partition 'nope': name one of main, urgent, accounted"),
        ([], "without --time the partition main gives a job 00:10:00, which leaves nothing before the stop signal"),
        (["--gpus-per-node", 7], "main has: 3 nodes with 8 CPUs, 16000 MB, gpu:2"),
    ],
    ids=["nodes", "nodes of several", "account", "partition", "time", "gpus"],
)
def test_what_the_cluster_cannot_do_is_refused(cluster, invoke, monkeypatch, run_file, options, said):
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    before = set(cluster("squeue", "-h", "-o", "%i").split())
    given = {"--nodes": 2, "--gpus-per-node": 1} | dict(zip(options[::2], options[1::2], strict=True))
    done = invoke("submit", run_file, *(part for pair in given.items() for part in pair), "--shared-folder")
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert not (run_file.parent / "runs").exists()
    assert set(cluster("squeue", "-h", "-o", "%i").split()) <= before


def test_a_folder_of_this_machine_alone_is_refused(cluster, invoke, monkeypatch, run_file):
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    done = invoke("submit", run_file, "--nodes", 2, "--gpus-per-node", 1, "--set", "run.folder=/dev/shm/runs")
    assert done.code == 2
    assert "/dev/shm/runs is on a tmpfs file system, which 2 nodes do not share" in done.err


def test_a_folder_that_cannot_be_written_is_refused(cluster, invoke, monkeypatch, run_file):
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    folder = ["--set", f"run.folder={run_file}/runs", "--time", 60, "--shared-folder"]
    done = invoke("submit", run_file, "--nodes", 2, "--gpus-per-node", 1, *folder)
    assert done.code == 2
    assert "set run.folder to a folder that can be written" in done.err


def test_a_chain_that_is_cut_short_names_the_jobs_that_wait(cluster, invoke, monkeypatch, run_file):
    monkeypatch.setenv("SLURM_CONF", cluster.environment["SLURM_CONF"])
    answers = iter(["7", "8"])

    def refuses_the_third(script):
        if answer := next(answers, None):
            return answer
        raise UserError("sbatch refuses it")

    monkeypatch.setattr(slurm, "submit", refuses_the_third)
    options = ["--nodes", 2, "--gpus-per-node", 1, "--time", 60, "--shared-folder", "--chain", 3]
    assert "2 of 3 jobs are submitted; to take them back: scancel 7 8" in invoke("submit", run_file, *options).err


def test_a_set_up_precedes_every_task_and_sets_its_environment(cluster, submit, tmp_path):
    setup = tmp_path / "setup.sh"
    setup.write_text('export MODULE="cuda on $(hostname)"\n')
    play = "doctor() { echo $MODULE; }; train() { echo $MODULE, $OMP_NUM_THREADS threads; say 0 finished; }"
    job = submit(play, "--setup", setup, "--cpus-per-task", 1)
    assert cluster.wait(job.id)["JobState"] == "COMPLETED", job.log.read_text()
    latest = job.run / "slurm" / "latest"
    nodes = (latest / "nodes").read_text().split()
    assert [(latest / f"doctor-{node}.log").read_text() for node in nodes] == [f"cuda on {node}\n" for node in nodes]
    trained = [(latest / f"trainer-{node}-rank-{rank}.log").read_text() for rank, node in enumerate(nodes)]
    assert trained == [f"cuda on {node}, 1 threads\n" for node in nodes]


def test_a_set_up_that_fails_ends_the_job_with_its_message(cluster, submit, tmp_path):
    setup = tmp_path / "setup.sh"
    setup.write_text("echo no such module >&2; false\n")
    job = submit(FINISHES, "--setup", setup)
    assert cluster.wait(job.id)["ExitCode"] == "2:0"
    assert f"error: the set-up {setup} failed with exit code 1 on node" in job.log.read_text()
    assert "refused: requeuing would not help" in job.log.read_text()


def test_a_rank_gets_the_cpus_that_a_node_has_for_each_gpu(cluster, submit):
    cpus = int(cluster("sinfo", "-h", "-N", "-p", "main", "-o", "%c").split()[0])
    job = submit("train() { echo $SLURM_CPUS_PER_TASK CPUs, $OMP_NUM_THREADS threads; say 0 finished; }", nodes=1)
    cluster.wait(job.id)
    share = max(1, cpus // 2)  # of two GPUs
    assert f"#SBATCH --cpus-per-task={share}\n" in (job.run / "slurm" / "job.sbatch").read_text()
    [log] = (job.run / "slurm" / "latest").glob("trainer-*")
    assert log.read_text() == f"{share} CPUs, {share} threads\n"
