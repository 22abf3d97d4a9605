"""When a pool gives a server up, starts it anew, or leaves it alone; the servers are stand-ins of a few lines."""

from __future__ import annotations

import json
import sys
import time

import pytest

from megatron_gopd.config.models import RolloutServers
from megatron_gopd.config.schema import Servers
from megatron_gopd.errors import UserError
from megatron_gopd.servers import launch, supervisor
from megatron_gopd.servers.pool import ServerPool
from megatron_gopd.servers.supervisor import LostServersError
from megatron_gopd.srun import this_node
from tests.servers.stub import stub

# healthy, but a POST is `fault`; `count` is how often it was started, this time included
STAND_IN = """
import os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
with open(sys.argv[2], "a+") as starts:
    starts.write("x")
    starts.flush()
    starts.seek(0)
    count = len(starts.read())
class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def do_POST(self):
        FAULT
    def log_message(self, *_):
        pass
BEGIN
HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


@pytest.fixture
def make_pool(monkeypatch, tmp_path):
    """make_pool(what a POST does, what precedes listening, **settings) -> a pool that is closed after the test."""
    monkeypatch.setattr(supervisor, "WATCH_S", 0.1)
    made = []

    def make(fault, begin="", *, name="one", needs_weights=False, **settings):
        program = STAND_IN.replace("FAULT", fault).replace("BEGIN", begin)
        words = [sys.executable, "-c", program]
        monkeypatch.setattr(
            launch, "command", lambda model, port, *_, **__: [*words, str(port), str(tmp_path / "starts")]
        )
        kind = {"name": name, "model": "", "dtype": "", "logs": tmp_path, "most_requests": 8}
        made.append(ServerPool(Servers(**settings), needs_weights=needs_weights, **kind))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


def ask(pool):
    """A request under way; servers without weights are given them as they come."""
    asked = pool.background.start(pool.ask(lambda client: client.post("/generate", {})))
    deadline = time.monotonic() + 120
    while not asked.done() and time.monotonic() < deadline:
        for server in pool.stale:
            pool.admit(server)
        time.sleep(0.05)
    return asked.result(timeout=0)


def test_a_server_that_ends_at_every_request_ends_the_run_though_it_takes_weights(make_pool):
    with pytest.raises(LostServersError, match="failed 3 times in a row"):
        ask(make_pool("os._exit(3)", needs_weights=True))


def test_what_servers_did_is_told_beside_their_logs(make_pool, tmp_path):
    answer = """self.send_response(200), self.end_headers(), self.wfile.write(b'{"a": 1, "b": 2}')"""
    pool = make_pool(f"os._exit(3) if count == 1 else ({answer})")
    ask(pool)  # by the second one
    pool.close()
    (row,) = json.loads((tmp_path / "servers-one.json").read_text())
    assert (row["name"], row["node"], row["requests"], row["restarts"]) == ("one-0", this_node(), 1, 1)
    assert row["tokens_per_s"] > 0


def test_of_servers_that_others_run_nothing_is_told(make_pool, tmp_path):
    (own,) = make_pool("pass").servers
    make_pool("pass", urls=[own.url], name="theirs").close()
    assert not (tmp_path / "servers-theirs.json").exists()


def test_a_restart_that_fails_is_tried_again(make_pool):
    answer = "self.send_response(200), self.end_headers(), self.wfile.write(b'{}')"
    pool = make_pool(f"os._exit(3) if count == 1 else ({answer})", "count == 2 and sys.exit('no memory yet')")
    assert ask(pool) == {}


def test_a_server_that_cannot_go_on_in_place_is_refused(tmp_path):
    with stub(lambda path, body: 422 if body.get("mode") == "in_place" else {}) as url:
        kind = {"name": "one", "model": "", "dtype": "", "logs": tmp_path, "most_requests": 8}
        pool = ServerPool(RolloutServers(urls=[url], on_update="in_place"), **kind)
        with pytest.raises(UserError, match="on_update: in_place: .*422.*; use retract"), pool.quiet(pool.servers):
            pass
        pool.close()


def test_restarts_that_fail_leave_a_run_without_servers(make_pool):
    with pytest.raises(LostServersError, match="failed 3 times in a row; the end of .*\n  no memory"):
        ask(make_pool("os._exit(3)", "count > 1 and sys.exit('no memory')"))


def test_a_server_that_nobody_asks_again_is_left_alone(make_pool, monkeypatch, tmp_path):
    monkeypatch.setattr(supervisor, "HEALTH_S", 0.5)
    pool = make_pool("pass", count=2, patience_s=4)
    pool.servers[0].failed()  # and another server answered
    time.sleep(6)
    assert (tmp_path / "starts").read_text() == "xx"
