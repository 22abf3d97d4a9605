"""Real servers for tests, SGLang's and our scorer, and a proxy in front of it that misbehaves on request."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.ranks import environment_of_ranks

START_S = 240
TOKEN = "a secret"  # of our scorer


@contextlib.contextmanager
def real_server(model: Path, log: Path, options: dict | None = None) -> Iterator[str]:
    """Its URL; MEGATRON_GOPD_TEST_SERVER names one that runs already, and is then used where no options are asked."""
    from megatron_gopd.servers.command import command, environment
    from megatron_gopd.servers.process import ServerProcess, free_port

    if not options and (running := os.environ.get("MEGATRON_GOPD_TEST_SERVER")):
        yield running
        return
    port = free_port()
    process = ServerProcess(command(model, port, "float32", options or {}), environment(), log)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: healthy(url), START_S, process)
        yield url
    finally:
        process.stop()


@contextlib.contextmanager
def real_scorer(model: Path, log: Path) -> Iterator[str]:
    """The URL of megatron-gopd serve-scorer of `model` on two tensor-parallel ranks, in float32."""
    from megatron_gopd.servers.process import ServerProcess, free_port

    port = free_port()
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    verb = ["--nproc-per-node", "2", "-m", "megatron_gopd", "serve-scorer", "--model", str(model)]
    options = ["--layout", "tp=2", "--dtype", "float32", "--port", str(port)]
    process = ServerProcess([*launcher, *verb, *options], environment_of_ranks() | {"MEGATRON_GOPD_TOKEN": TOKEN}, log)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: healthy(url), START_S, process)
        yield url
    finally:
        process.stop()


def healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=30, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def wait_for(condition, seconds: float, process=None) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        dead = process is not None and process.exit_code is not None
        if dead or time.monotonic() > deadline:
            raise AssertionError(process.last_words() if process else f"not within {seconds} s")
        time.sleep(0.1)


def load(url: str, model: Path) -> None:
    """Give the server a model's weights, version 0."""
    body = {"model_path": str(model), "load_format": "auto", "weight_version": "0", "flush_cache": True}
    assert httpx.post(f"{url}/update_weights_from_disk", json=body, timeout=60, trust_env=False).json()["success"]


class Proxy:
    """Hands requests on to the real server; `fault(path, count)` may answer in its place, or return None."""

    def __init__(self, url: str, fault=lambda path, count: None):
        import uvicorn
        from starlette.applications import Starlette
        from starlette.responses import Response
        from starlette.routing import Route

        self.fault, self.paths, self._target = fault, [], url
        self._client = httpx.AsyncClient(base_url=url, timeout=120, trust_env=False)

        async def hand_on(request):
            path = request.url.path
            self.paths.append(path)
            answer = self.fault(path, self.paths.count(path))
            if answer is not None:
                return await answer if hasattr(answer, "__await__") else answer
            kept = {name: value for name, value in request.headers.items() if name in ("content-type", "authorization")}
            reply = await self._client.request(request.method, path, content=await request.body(), headers=kept)
            return Response(reply.content, reply.status_code, media_type=reply.headers.get("content-type"))

        routes = [Route("/{path:path}", hand_on, methods=["GET", "POST"])]
        settings = uvicorn.Config(Starlette(routes=routes), port=0, log_level="error", lifespan="off")
        self._server, socket = uvicorn.Server(settings), settings.bind_socket()
        self.url = f"http://127.0.0.1:{socket.getsockname()[1]}"
        threading.Thread(target=self._server.run, kwargs={"sockets": [socket]}, daemon=True).start()

    def close(self) -> None:
        self._server.should_exit = True
        self._server.force_exit = True
