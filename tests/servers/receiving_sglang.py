"""A server in the place of SGLang that takes weights by broadcast, in a process of its own.

It keeps a hash of every tensor, and what it was asked in order; one request after the other, as SGLang. Of the requests
for a bucket it fails the one whose number POST /fail tells, without taking part in the broadcast.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.distributed_c10d as c10d

from megatron_gopd.servers.process import free_port
from tests.ranks import FORKS, _start_forking
from tests.servers.real_server import healthy, wait_for

LIMIT = timedelta(seconds=60)
one_at_a_time = threading.Lock()
groups: dict[str, dist.ProcessGroup] = {}
held = {"asked": [], "hashes": {}, "version": "none", "fails": -1, "buckets": 0}


def join(body: dict) -> None:
    """As init_custom_process_group does."""
    store = dist.TCPStore(body["master_address"], body["master_port"], is_master=False, timeout=LIMIT)
    keys, name = dist.PrefixStore(body["group_name"], store), body["group_name"]
    size, rank = body["world_size"], body["rank_offset"]
    groups[name], _ = c10d._new_process_group_helper(
        size, rank, [], dist.Backend("gloo"), keys, group_name=name, timeout=LIMIT
    )
    c10d._world.pg_group_ranks[groups[name]] = {each: each for each in range(size)}


def take(body: dict) -> None:
    held["buckets"] += 1
    if held["buckets"] == held["fails"]:
        raise RuntimeError("told to fail")
    dtypes = [getattr(torch, name) for name in body["dtypes"]]
    sizes = [int(np.prod(s)) * d.itemsize for s, d in zip(body["shapes"], dtypes, strict=True)]
    flat = torch.empty(sum(sizes), dtype=torch.uint8)
    dist.broadcast(flat, src=0, group=groups[body["group_name"]])
    for name, tensor in zip(body["names"], flat.split(sizes), strict=True):
        held["hashes"][name] = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
    held["version"] = body["weight_version"]


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.reply(200, {"tp_size": 1, "pp_size": 1, "device": "stand-in"} | held)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or "{}")
        with one_at_a_time:
            about = body.get("group_name", "").rpartition("-")[2], body.get("flush_cache", False)
            held["asked"].append([self.path, *about])
            try:
                if self.path == "/fail":
                    held["fails"] = held["buckets"] + body["after"]
                elif self.path == "/init_weights_update_group":
                    join(body)
                elif self.path == "/update_weights_from_distributed":
                    take(body)
            except (RuntimeError, ValueError) as error:
                return self.reply(500, {"error": str(error)})
        return self.reply(200, {"success": True})

    def reply(self, status: int, body: dict) -> None:
        said = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def stand_ins(count: int) -> Iterator[list[str]]:
    """The URLs of as many; forked, as ranks are."""
    _start_forking()
    ports = [free_port() for _ in range(count)]
    processes = [FORKS.Process(target=_serve, args=(port,), daemon=True) for port in ports]
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    try:
        for process in processes:
            process.start()
        for url in urls:
            wait_for(lambda url=url: healthy(url), 120)
        yield urls
    finally:
        for process in processes:
            process.kill()
            process.join()


def _serve(port: int) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    ThreadingHTTPServer(("127.0.0.1", port), Answer).serve_forever()
