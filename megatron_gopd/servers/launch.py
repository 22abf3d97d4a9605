"""What a node must know to start a server, and the start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_gopd.errors import UserError
from megatron_gopd.servers.command import command, environment
from megatron_gopd.servers.process import ServerProcess, free_port


@dataclass(frozen=True)
class Launch:
    """JSON's types only: it travels to the node."""

    model: str
    dtype: str
    options: dict[str, bool | int | float | str]  # of sglang.launch_server
    gpus: list[str] | None  # by what CUDA_VISIBLE_DEVICES calls them; None: as this process has it
    log: str


def start(launch: Launch, host: str = "127.0.0.1", key: Path | None = None) -> tuple[ServerProcess, str]:
    """The server that listens at the address `host` of this machine, and its URL; whether it answers is to be seen.

    `key`: a file with what those who ask must know.

    Raises:
        UserError: SGLang is not installed, or this machine does not see the key.
        OSError: the log cannot be written, or there is no such address here.
    """
    if key and not key.exists():
        raise UserError(f"{key} is not there; set run.folder to a folder that all nodes share")
    port = free_port(host)
    words = command(launch.model, port, launch.dtype, launch.options, host=host, key=key)
    return ServerProcess(words, environment(launch.gpus), Path(launch.log)), f"http://{host}:{port}"
