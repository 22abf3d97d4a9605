from __future__ import annotations

import json

import pytest

from megatron_gopd.errors import UserError
from megatron_gopd.runs import FinishedError, RunFolder, write_manifest
from megatron_gopd.runs.checkpoints import folder_of
from megatron_gopd.runs.trajectories import steps_kept


def rows(*steps: int) -> str:
    return "".join(json.dumps({"step": step}) + "\n" for step in steps)


def steps_in(file) -> list[int]:
    return [json.loads(row)["step"] for row in file.read_text().splitlines()]


def leave(config, *, steps: int, checkpoints=(), model=False) -> RunFolder:
    """An earlier attempt that took `steps`."""
    with RunFolder.open(config) as folder:
        folder.metrics.write_text(rows(*range(1, steps + 1)))
        folder.samples.write_text(rows(*range(1, steps + 1)))
        folder.trajectories.mkdir()
        for step in range(1, steps + 1):
            (folder.trajectories / f"step-{step:08d}.parquet").touch()
        folder.evaluation.mkdir()
        (folder.evaluation / "before.json").write_text("{}")
        if model:
            folder.model.mkdir()
        for step in checkpoints:
            folder_of(folder.checkpoints, step).mkdir(parents=True)
            write_manifest(folder_of(folder.checkpoints, step), {"step": step})
    return folder


def test_an_interrupted_run_goes_on_after_its_newest_checkpoint(make_config):
    first = leave(make_config(), steps=5, checkpoints=(2, 4))
    with RunFolder.open(make_config()) as second:
        assert second.resumed.step == 4
        assert second.logs.name == "attempt-2"
    assert steps_in(first.metrics) == steps_in(first.samples) == list(steps_kept(first.trajectories)) == [1, 2, 3, 4]


def test_a_row_cut_short_by_the_end_of_its_process_goes(make_config):
    first = leave(make_config(), steps=2, checkpoints=[2])
    with first.metrics.open("a") as metrics:
        metrics.write('{"step": 3, "lo')
    RunFolder.open(make_config()).close()
    assert steps_in(first.metrics) == [1, 2]


def test_without_a_checkpoint_an_attempt_starts_anew_and_the_last_ones_moves_to_its_logs(make_config):
    first = leave(make_config(), steps=3)
    with RunFolder.open(make_config()) as second:
        assert second.resumed is None
        assert not any(
            path.exists() for path in (second.metrics, second.samples, second.trajectories, second.evaluation)
        )
    assert steps_in(first.logs / "metrics.jsonl") == [1, 2, 3]
    assert (first.logs / "evaluation" / "before.json").exists()


def test_resume_never_sets_checkpoints_and_model_aside_too(make_config):
    first = leave(make_config(), steps=12, checkpoints=[2], model=True)
    with RunFolder.open(make_config(checkpoint={"resume": "never"})) as second:
        assert second.resumed is None
        assert not second.checkpoints.exists()
    assert (first.logs / "model").exists()
    assert folder_of(first.logs / "checkpoints", 2).exists()


def test_a_finished_run_says_so(make_config):
    config = make_config()
    leave(config, steps=config.run.steps, checkpoints=[2], model=True)
    with pytest.raises(FinishedError, match=r"is finished.*checkpoint.resume=never.*raise run.steps"):
        RunFolder.open(config)


@pytest.mark.parametrize("model", [True, False])
def test_a_run_that_is_beyond_its_steps_is_no_shorter_run(make_config, model):
    config = make_config()
    leave(config, steps=3, checkpoints=[3], model=model)
    shorter = make_config(run={"name": "first", "steps": 2, "folder": config.run.folder})
    with pytest.raises(UserError, match=r"done 3 steps, more than run.steps \(2\).*--new-name"):
        RunFolder.check(shorter)
    RunFolder.check(make_config(run=shorter.run, checkpoint={"resume": "never"}))


def test_steps_that_no_checkpoint_holds_do_not_count(make_config):
    config = make_config()
    leave(config, steps=3, checkpoints=[1])
    with RunFolder.open(make_config(run={"name": "first", "steps": 2, "folder": config.run.folder})) as folder:
        assert folder.resumed.step == 1


def test_a_finished_run_goes_on_when_it_gets_more_steps(make_config):
    config = make_config()
    leave(config, steps=config.run.steps, checkpoints=[2], model=True)
    longer = make_config(run={"name": "first", "steps": config.run.steps + 1, "folder": config.run.folder})
    with RunFolder.open(longer) as folder:
        assert folder.resumed.step == 2
