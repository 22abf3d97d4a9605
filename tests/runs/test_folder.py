from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_gopd.config import load_config, to_yaml
from megatron_gopd.errors import UserError
from megatron_gopd.runs import RunFolder

HOLD = """
import sys, time
from megatron_gopd.config import load_config
from megatron_gopd.runs import RunFolder
folder = RunFolder.open(load_config(sys.argv[1]))
print("open", flush=True)
time.sleep(60)
"""

HOLD_AND_FORK = HOLD.replace('print("open"', 'import os\nif not os.fork(): print(f"open {os.getpid()}"')


@pytest.fixture
def config_file(tmp_path, make_config):
    (tmp_path / "given.yaml").write_text(to_yaml(make_config()))
    return tmp_path / "given.yaml"


def test_the_folder_holds_the_resolved_configuration(make_config):
    config = make_config()
    with RunFolder.open(config) as folder:
        assert folder.path.name == "first"
        assert load_config(folder.path / "config.yaml") == config


def test_everything_a_run_writes_has_its_place_in_the_folder(make_config):
    with RunFolder.open(make_config()) as folder:
        places = [folder.metrics, folder.samples, folder.checkpoints, folder.model, folder.evaluation, folder.logs]
        assert [str(place.relative_to(folder.path)) for place in places] == [
            "metrics.jsonl",
            "samples.jsonl",
            "checkpoints",
            "model",
            "evaluation",
            "logs/attempt-1",
        ]


def test_the_same_configuration_again_is_the_next_attempt(make_config):
    for number in (1, 2, 3):
        with RunFolder.open(make_config()) as folder:
            assert folder.logs.name == f"attempt-{number}"
            assert folder.logs.is_dir()
            assert os.readlink(folder.path / "logs" / "latest") == f"attempt-{number}"


def begin(config) -> None:
    """A run that has measured something."""
    with RunFolder.open(config) as folder:
        folder.metrics.write_text('{"step": 1}\n')


def test_a_run_that_never_took_a_step_takes_another_configuration(make_config):
    RunFolder.open(make_config()).close()
    RunFolder.open(make_config(student={"model": "small"})).close()


@pytest.mark.parametrize(
    "changes",
    [
        {"student": {"model": "student", "layout": {"tp": 2}, "recompute": "full"}},
        {"training": {"max_tokens_per_micro_batch": 64}},
        {"checkpoint": {"every": 1}},
        {"logging": {"tensorboard": True}},
    ],
)
def test_how_a_run_is_placed_and_watched_may_change(make_config, changes):
    begin(make_config())
    RunFolder.open(make_config(**changes)).close()


def test_another_configuration_is_refused_key_by_key(make_config):
    begin(make_config())
    other = make_config(student={"model": "small"}, evaluation={"prompts": "held-out.jsonl"})
    with pytest.raises(UserError) as refused:
        RunFolder.open(other)
    lines = str(refused.value).splitlines()
    assert lines[1] == '  student.model: there "student", here "small"'
    assert lines[2].startswith("  evaluation: there null, here {")
    assert '"prompts": "held-out.jsonl"' in lines[2]
    assert lines[3].startswith("Set another run.name, or delete ")
    assert len(lines) == 4


def test_of_many_differences_five_are_listed(make_config):
    begin(make_config())
    other = make_config(optimizer={"lr": 1, "min_lr": 1, "schedule": "cosine", "eps": 1, "clip_grad": 2, "type": "sgd"})
    with pytest.raises(UserError) as refused:
        RunFolder.open(other)
    assert str(refused.value).count(": there ") == 5
    assert "and 1 more" in str(refused.value)


def test_a_key_that_only_one_configuration_has_is_absent_in_the_other(make_config):
    begin(make_config())
    two = {"math": {"model": "teacher"}, "code": {"model": "coder"}}
    with pytest.raises(UserError, match=r"teachers\.code: there absent, here {"):
        RunFolder.open(make_config(teachers=two))


def test_a_refused_configuration_leaves_the_run_as_it_was_and_unlocked(make_config):
    with RunFolder.open(make_config()) as folder:
        folder.metrics.write_text("1")
    with pytest.raises(UserError):
        RunFolder.open(make_config(student={"model": "small"}))
    assert folder.metrics.exists()
    RunFolder.open(make_config()).close()


def test_a_folder_of_other_things_is_refused_and_left_alone(tmp_path, make_config):
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"holds 'thesis.tex' but no config.yaml"):
        RunFolder.open(make_config())
    assert os.listdir(tmp_path / "runs" / "first") == ["thesis.tex"]


def test_a_run_killed_before_its_configuration_was_whole_can_start_again(tmp_path, make_config):
    (tmp_path / "runs" / "first").mkdir(parents=True)
    for left_behind in (".lock", ".config.yaml-0a1b2c3d"):
        (tmp_path / "runs" / "first" / left_behind).touch()
    RunFolder.open(make_config()).close()


@pytest.mark.parametrize("file", ["runs", "runs/first", "runs/first/logs"])
def test_a_file_in_the_place_of_a_folder_is_a_users_mistake(tmp_path, make_config, file):
    if file.endswith("logs"):
        RunFolder.open(make_config()).close()
        (tmp_path / "runs" / "first" / "logs").rename(tmp_path / "moved")
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    with pytest.raises(UserError, match=r"cannot write the run to .*first .*set run\.folder"):
        RunFolder.open(make_config())


def test_a_spoilt_configuration_is_named(make_config):
    begin(make_config())
    with RunFolder.open(make_config()) as folder:
        folder.metrics.touch()
        (folder.path / "config.yaml").write_text("run: [")
    with pytest.raises(UserError, match=r"config.yaml is not YAML any more"):
        RunFolder.open(make_config())


def test_a_run_that_is_claimed_and_not_begun_leaves_nothing(make_config):
    folder = RunFolder.claim(make_config())
    assert folder.path.is_dir()
    folder.close()
    assert not folder.path.parent.exists()


def test_a_folder_of_runs_that_was_there_stays(make_config):
    config = make_config()
    Path(config.run.folder).mkdir()
    RunFolder.claim(config).close()
    assert os.listdir(config.run.folder) == []


def test_a_run_that_is_claimed_is_left_as_it_was(make_config):
    begin(make_config())
    folder = RunFolder.claim(make_config())
    before = sorted(os.listdir(folder.path))
    folder.close()
    assert sorted(os.listdir(folder.path)) == before
    assert sorted(os.listdir(folder.path / "logs")) == ["attempt-1", "latest"]


def overwriting(make_config, **sections):
    return make_config(checkpoint={"resume": "overwrite"}, **sections)


def test_overwrite_removes_what_another_configuration_left(make_config):
    begin(make_config())
    with RunFolder.open(overwriting(make_config, student={"model": "small"})) as folder:
        assert folder.logs.name == "attempt-1"
        assert sorted(os.listdir(folder.path)) == [".lock", "config.yaml", "logs"]
        assert load_config(folder.path / "config.yaml").student.model == "small"


def test_what_was_overwritten_goes_on_from_its_own_configuration(make_config):
    begin(overwriting(make_config))
    config = load_config(Path(make_config().run.folder) / "first" / "config.yaml")
    assert config.checkpoint.resume == "auto"
    with RunFolder.open(config) as folder:
        assert folder.logs.name == "attempt-2"


@pytest.mark.parametrize("variable", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_a_command_that_is_started_again_does_not_overwrite_its_own_run(make_config, monkeypatch, variable):
    begin(overwriting(make_config))
    monkeypatch.setenv(variable, "1")
    with RunFolder.open(overwriting(make_config)) as folder:
        assert (folder.path / "logs" / "attempt-1" / "metrics.jsonl").exists()


def test_overwrite_leaves_batch_jobs_their_logs(make_config):
    begin(make_config())
    jobs = Path(make_config().run.folder) / "first" / "slurm"
    jobs.mkdir()
    (jobs / "job-1.log").touch()
    with RunFolder.open(overwriting(make_config)):
        assert os.listdir(jobs) == ["job-1.log"]


def test_overwrite_does_not_take_what_is_no_run(tmp_path, make_config):
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "first" / "thesis.tex").touch()
    with pytest.raises(UserError, match="it is not a run's folder"):
        RunFolder.open(overwriting(make_config))
    assert os.listdir(tmp_path / "runs" / "first") == ["thesis.tex"]


def test_overwrite_does_not_take_a_run_that_goes_on(spawn, config_file, make_config):
    holder = spawn(HOLD, config_file)
    assert holder.stdout.readline() == "open\n"
    with pytest.raises(UserError, match="is being written by"):
        RunFolder.open(overwriting(make_config))


def test_two_processes_cannot_write_to_one_run(spawn, config_file, make_config):
    holder = spawn(HOLD, config_file)
    assert holder.stdout.readline() == "open\n"
    with pytest.raises(UserError, match=rf"first is being written by pid {holder.pid} on "):
        RunFolder.open(make_config())


def test_a_killed_process_gives_the_run_free(spawn, config_file, make_config):
    holder = spawn(HOLD, config_file)
    assert holder.stdout.readline() == "open\n"
    holder.kill()
    holder.wait()
    with RunFolder.open(make_config()) as folder:
        assert folder.logs.name == "attempt-2"


def test_a_forked_worker_does_not_hold_the_run_of_its_killed_parent(spawn, config_file, make_config):
    holder = spawn(HOLD_AND_FORK, config_file)
    worker = int(holder.stdout.readline().split()[1])
    try:
        holder.kill()
        holder.wait()
        RunFolder.open(make_config()).close()
    finally:
        os.kill(worker, 9)


def test_the_room_opens_without_heavy_imports():
    code = "import sys, megatron_gopd.runs; print({'torch', 'wandb', 'tensorboard'} & sys.modules.keys())"
    root = os.path.dirname(os.path.dirname(sys.modules["megatron_gopd"].__file__))
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=root) == "set()\n"
