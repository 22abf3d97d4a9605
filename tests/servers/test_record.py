"""How fast servers are, as their record tells it."""

from __future__ import annotations

from types import SimpleNamespace

from megatron_gopd.runs.servers import ServerRow
from megatron_gopd.servers import record
from megatron_gopd.servers.server import State


class Worked(SimpleNamespace):
    """A server that did what a test says."""

    __hash__ = object.__hash__


def speeds(tmp_path, *looks: tuple[float, int]) -> list[float | None]:
    """What is told after each look at (seconds of work, tokens)."""
    server = Worked(managed=True, name="a", home=Worked(node="n"), state=State.READY, done=1, lives=1)
    kept = record.Record("one", [server], tmp_path)
    found: list[ServerRow] = []
    kept._write = found.extend
    for server.worked_s, server.tokens in looks:
        server.done += 1
        kept.look()
    kept.close()
    return [row.tokens_per_s for row in found]


def test_a_server_without_work_has_no_speed(tmp_path):
    assert speeds(tmp_path, (0.0, 0), (0.0, 0)) == [None, None]


def test_speed_counts_seconds_of_work(tmp_path):
    assert speeds(tmp_path, (10.0, 500), (10.0, 500), (20.0, 600)) == [50.0, 50.0, 30.0]


def test_speed_is_that_of_late(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "RECENT_S", 10.0)
    assert speeds(tmp_path, (100.0, 9_000), (105.0, 9_000), (110.0, 9_100), (120.0, 9_100))[-2:] == [10.0, 0.0]
