from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from megatron_gopd.errors import UserError
from megatron_gopd.runs import RunFolder, Sinks, open_sinks
from megatron_gopd.runs.sinks import JsonlSink

LOG_FOREVER = """
import itertools, pathlib, sys
from megatron_gopd.runs.sinks import JsonlSink
sink = JsonlSink(pathlib.Path(sys.argv[1]))
for step in itertools.count(1):
    sink.log(step, {"loss": 1 / step, "reverse_kl": step / 7})
"""


class Deaf:
    """A sink whose every call fails."""

    def log(self, step, metrics):
        raise OSError("disk full")

    def close(self):
        raise OSError("disk full")


class Recorder:
    def __init__(self):
        self.closed = 0

    def log(self, step, metrics): ...

    def close(self):
        self.closed += 1


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def wandb_records(folder) -> list:
    """The records of the one offline run in `folder`: a LevelDB log with a header of 7 bytes, in one 32 KiB block."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # its service writes the file's end after finish(); the end of a process waits for that too
    (file,) = folder.glob("offline-run-*/run-*.wandb")
    log, place, records = file.read_bytes(), 7, []
    assert len(log) < 32768
    while place < len(log):
        length = int.from_bytes(log[place + 4 : place + 6], "little")
        records.append(Record.FromString(log[place + 7 : place + 7 + length]))
        place += 7 + length
    return records


@pytest.fixture
def quiet_wandb(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    for kind in ("CONFIG", "CACHE", "DATA"):
        monkeypatch.setenv(f"WANDB_{kind}_DIR", str(tmp_path / "wandb-home"))


def test_a_row_a_step(tmp_path):
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.log(1, {"loss": 0.5, "reverse_kl/math": 2})
    sink.log(2, {"loss": 0.25})
    sink.close()
    assert rows(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": 0.5, "reverse_kl/math": 2},
        {"step": 2, "loss": 0.25},
    ]


def test_a_row_can_be_read_at_once(tmp_path):
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    sink.log(1, {"loss": 0.5})
    assert rows(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 0.5}]
    sink.close()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_metric_that_is_not_finite_is_refused_by_name(tmp_path, value):
    sink = JsonlSink(tmp_path / "metrics.jsonl")
    with pytest.raises(ValueError, match=f"step 7: the metric 'grad_norm' is {value}"):
        sink.log(7, {"loss": 0.5, "grad_norm": value})
    sink.close()
    assert rows(tmp_path / "metrics.jsonl") == []


def test_a_killed_run_leaves_whole_rows(tmp_path, spawn):
    path = tmp_path / "metrics.jsonl"
    process, end = spawn(LOG_FOREVER, path), time.monotonic() + 240
    while time.monotonic() < end and not (path.exists() and path.stat().st_size > 100_000):
        time.sleep(0.01)
    process.kill()
    process.wait()
    steps = [row["step"] for row in rows(path)]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > 1000


def test_metrics_jsonl_is_always_written(make_config):
    config = make_config()
    with RunFolder.open(config) as folder, open_sinks(config, folder) as sinks:
        sinks.log(1, {"loss": 0.5})
    assert rows(folder.metrics) == [{"step": 1, "loss": 0.5}]
    assert sorted(os.listdir(folder.path)) == [".lock", "config.yaml", "logs", "metrics.jsonl"]


def test_tensorboard_reads_the_event_file_while_the_run_goes_on(make_config):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = make_config(logging={"tensorboard": True})
    with RunFolder.open(config) as folder, open_sinks(config, folder) as sinks:
        sinks.log(1, {"loss": 0.5, "timing/step_s": 3.0})
        sinks.log(2, {"loss": 0.25})
        events = EventAccumulator(str(folder.path / "tensorboard")).Reload()
        assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 0.5), (2, 0.25)]
        assert [event.value for event in events.Scalars("timing/step_s")] == [3.0]


@pytest.mark.parametrize("fails", [False, True])
def test_an_offline_wandb_run_holds_metrics_configuration_and_how_it_ended(make_config, quiet_wandb, fails):
    config = make_config(logging={"wandb": {"project": "ours"}})
    try:
        with RunFolder.open(config) as folder, open_sinks(config, folder) as sinks:
            sinks.log(3, {"reverse_kl/math": 0.5})
            if fails:
                raise RuntimeError
    except RuntimeError:
        pass
    records = wandb_records(folder.path / "wandb")
    run = next(record.run for record in records if record.HasField("run"))
    history = {"/".join(item.nested_key) or item.key: item.value_json for r in records for item in r.history.item}
    assert (run.project, run.display_name) == ("ours", "first")
    assert json.loads(next(entry.value_json for entry in run.config.update if entry.key == "data"))["batch_size"] == 2
    assert (history["_step"], history["reverse_kl/math"]) == ("3", "0.5")
    assert [record.exit.exit_code for record in records if record.HasField("exit")] == [int(fails)]


def continued(folder: RunFolder, after: int) -> RunFolder:
    """The next attempt, which goes on from a checkpoint."""
    return replace(folder, resumed=SimpleNamespace(step=after))


def test_what_is_repeated_is_once_in_tensorboard(make_config):
    """An attempt that took 5 steps, one that went on after the second of them, and one after that."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = make_config(logging={"tensorboard": True})
    with RunFolder.open(config) as folder:
        for attempt, (done, last) in enumerate([(0, 5), (2, 4), (4, 6)]):
            with open_sinks(config, continued(folder, done) if done else folder) as sinks:
                for step in range(done + 1, last + 1):
                    sinks.log(step, {"loss": step + attempt / 10})
        events = EventAccumulator(str(folder.path / "tensorboard")).Reload()
        found = [(event.step, round(event.value, 1)) for event in events.Scalars("loss")]
    assert found == [(1, 1.0), (2, 2.0), (3, 3.1), (4, 4.1), (5, 5.2), (6, 6.2)]


class WandbRun:
    def __init__(self):
        self.steps = []

    def log(self, metrics, step):
        self.steps.append(step)

    def finish(self, exit_code): ...


@pytest.fixture
def wandb_init(monkeypatch):
    """The arguments of every wandb.init; each gives the same run."""
    import wandb

    calls, run = [], WandbRun()
    monkeypatch.setattr(wandb, "init", lambda **arguments: calls.append(arguments) or run)
    return SimpleNamespace(calls=calls, run=run)


def test_attempts_that_continue_each_other_are_one_wandb_run_without_repeated_steps(make_config, wandb_init):
    config = make_config(logging={"wandb": {}})
    with RunFolder.open(config) as folder:
        for done, last in [(0, 5), (2, 4), (2, 6)]:
            with open_sinks(config, continued(folder, done) if done else folder) as sinks:
                for step in range(done + 1, last + 1):
                    sinks.log(step, {"loss": 0.5})
    assert wandb_init.run.steps == [1, 2, 3, 4, 5, 6]
    assert len({call["id"] for call in wandb_init.calls}) == 1


def test_an_attempt_from_the_beginning_is_another_wandb_run(make_config, wandb_init):
    config = make_config(logging={"wandb": {}})
    for _ in range(2):
        with RunFolder.open(config) as folder, open_sinks(config, folder) as sinks:
            sinks.log(1, {"loss": 0.5})
    assert wandb_init.run.steps == [1, 1]
    assert len({call["id"] for call in wandb_init.calls}) == 2


def test_wandb_takes_what_the_user_names(make_config, wandb_init):
    asked = {"project": "ours", "entity": "lab", "group": "lambdas", "tags": ["a", "b"], "id": "my-run-7"}
    config = make_config(logging={"wandb": asked})
    with RunFolder.open(config) as folder, open_sinks(config, folder):
        assert wandb_init.calls[0].items() >= asked.items()


def test_wandb_online_without_a_key_is_a_users_mistake(make_config, quiet_wandb):
    config = make_config(logging={"wandb": {"mode": "online"}})
    with RunFolder.open(config) as folder, pytest.raises(UserError, match=r"logging.wandb: No API key.*\n.*offline"):
        open_sinks(config, folder)


def test_a_sink_that_cannot_open_leaves_none_open(make_config, quiet_wandb):
    config = make_config(logging={"wandb": {"mode": "online"}})
    with RunFolder.open(config) as folder:
        with pytest.raises(UserError) as failed:
            open_sinks(config, folder)
        held = {os.path.realpath(descriptor) for descriptor in Path("/proc/self/fd").iterdir()}
        assert os.path.realpath(folder.metrics) not in held, failed  # whose frames would keep the file open


def test_close_closes_every_sink_and_lets_the_error_out():
    sinks, before, after = Sinks(), Recorder(), Recorder()
    for sink in (before, Deaf(), after):
        sinks.add(sink)
    with pytest.raises(OSError, match="disk full"):
        sinks.close()
    assert (before.closed, after.closed) == (1, 1)


def test_an_error_of_a_sink_ends_the_step():
    sinks = Sinks()
    sinks.add(Deaf())
    with pytest.raises(OSError, match="disk full"):
        sinks.log(1, {})


def kept_row(**changes) -> dict:
    values = np.array([-1.0, -3.0], np.float32)
    return {
        **{
            "step": 1,
            "teacher": "math",
            "kept_as": "best",
            "id": "p",
            "prompt": "# 1 + 1",
            "response": "<b>2</b>\n```",
        },
        **{"reward": 1.0, "finish_reason": "stop", "response_tokens": np.array([1, 2])},
        **{"advantage": values, "advantage_of_teacher": values, "entropy": -values},
    } | changes


def test_tensorboard_shows_kept_trajectories_as_text(make_config):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = make_config(logging={"tensorboard": True})
    with RunFolder.open(config) as folder, open_sinks(config, folder) as sinks:
        sinks.show(1, [kept_row()])
    events = EventAccumulator(str(folder.path / "tensorboard")).Reload()
    (event,) = events.Tensors("trajectories/math/best/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    assert "reverse_kl 2," in text
    assert all(line.startswith("    ") for line in text.split("\n") if line)  # code: nothing in it is markup


def test_wandb_gets_a_table_of_kept_trajectories(make_config, quiet_wandb):
    config = make_config(logging={"wandb": {}})
    with RunFolder.open(config) as folder, open_sinks(config, folder) as sinks:
        sinks.log(1, {"loss": 1.0})
        sinks.show(1, [kept_row(), kept_row(kept_as="worst", response="x" * 10_000)])
    (file,) = (folder.path / "wandb").glob("offline-run-*/files/media/table/*.json")
    table = json.loads(file.read_text())
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["kept_as"] for row in rows] == ["best", "worst"]
    assert rows[0]["response"] == "<b>2</b>\n```"
    assert rows[1]["response"].endswith(" ... and 6000 characters more")
    assert rows[0]["advantage_mean"] == -2.0
