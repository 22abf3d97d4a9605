"""What the sections share: the machine, random models, runs of the real verbs."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from scripts.gpu.checks.children import Children
from scripts.gpu.checks.result import Skipped
from scripts.gpu.checks.runs import Run
from scripts.gpu.checks.sizes import LARGE, SMALL

PROGRAMS = "scripts.gpu.programs"
# bits that repeat, of Transformer Engine and of cuBLAS
DETERMINISTIC = {"NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


@dataclass
class Bench:
    """`facts`: what programs/facts.py says of the machine. Models and runs go to `folder`."""

    gpu: bool
    quick: bool
    folder: Path
    facts: dict
    children: Children
    timeout: float = 300.0  # seconds of a child
    _made: dict[str, Future] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def device(self) -> str:
        return "cuda" if self.gpu else "cpu"

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returns or raises, made by the first who asks for `name`; the others wait for it."""
        with self._lock:
            mine = name not in self._made
            future = self._made.setdefault(name, Future())
        if mine:
            try:
                future.set_result(make())
            except BaseException as error:
                future.set_exception(error)
        return future.result()

    def model(self, name: str) -> Path:
        """The folder of one of sizes.SMALL or LARGE; prompts.jsonl lies beside it."""
        kind = "small" if name in SMALL else "large"
        return self.once(f"{kind} models", lambda: self._models(kind)) / name

    def needs_te(self) -> None:
        """Raises Skipped: Transformer Engine does not run here."""
        if self.facts["te_problem"]:
            raise Skipped(f"no Transformer Engine: {self.facts['te_problem']}")

    def train(self, tree: dict, *overrides: str, **options) -> Run:
        """The run `tree`, as often as it is asked for by its name; `options` as of `start`."""
        name = tree["run"]["name"]
        return self.once(f"run {name}", lambda: self.start(tree, *overrides, **options))

    def start(
        self,
        tree: dict,
        *overrides: str,
        te: bool = True,
        extra: Mapping[str, str] | None = None,
        alone: bool = False,
        ends_with: int = 0,
    ) -> Run:
        """`train` as a child process; `te=False` hides Transformer Engine from it. Raises ChildError."""
        run = Run(Path(tree["run"]["folder"], tree["run"]["name"]))
        config = self.folder / f"{run.path.name}.yaml"
        config.write_text(yaml.safe_dump(tree))
        hidden = {} if te else {"GPU_CHECK_HIDE": "transformer_engine"}
        wrapped = {"extra": hidden | dict(extra or {}), "alone": alone, "ends_with": ends_with}
        self._program("verb", "train", config, *overrides, name=f"train-{run.path.name}", **wrapped)
        return run

    def verb(self, name: str, *arguments: str | Path) -> str:
        """Another verb as a child process; what it printed."""
        return self.children.python(name, "-m", "megatron_gopd", *arguments, timeout=self.timeout)

    def program(self, program: str, *arguments: str | Path, name: str, **options) -> dict | list:
        """A program of ours, which writes what it found to the file that is its last argument."""
        answer = self.folder / f"{name}.json"
        self._program(program, *arguments, answer, name=name, **options)
        return json.loads(answer.read_text())

    def _program(self, program: str, *arguments: str | Path, name: str, **options) -> str:
        options = {"timeout": self.timeout} | options
        return self.children.python(name, "-m", f"{PROGRAMS}.{program}", *arguments, **options)

    def _models(self, kind: str) -> Path:
        folder = self.folder / kind
        self._program("models", self.device, kind, folder, name=f"{kind}-models")
        return folder


def environment(root: Path, gpu: bool) -> dict[str, str]:
    """Of every child: this checkout first, one GPU at most, few threads, no network."""
    path = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    chosen = {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": first if gpu else "", "GLOO_SOCKET_IFNAME": "lo"}
    chosen |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return os.environ | {"OMP_NUM_THREADS": "4" if gpu else "1"} | chosen


__all__ = ["DETERMINISTIC", "LARGE", "SMALL", "Bench", "environment"]
