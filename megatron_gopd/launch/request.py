"""What a user asks of `submit`, and what follows from it."""

from __future__ import annotations

import fnmatch
import os
import re
import sys
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal

from megatron_gopd.config import Config, load_config
from megatron_gopd.config.placement import lay_out
from megatron_gopd.errors import UserError
from megatron_gopd.runs.names import new_name

# names, never values: SLURM carries the values itself, so no secret stands in a script
EXPORTED = ("HOME", "USER", "PATH", "LANG", "LD_LIBRARY_PATH", "PYTHONPATH", "SLURM_CONF", "HF_HOME", "WANDB_API_KEY")
OF_PATHS = ("model", "train", "reference")  # keys whose values are paths
URL = "http://node:30000"  # stands for a server's address until there is one


@dataclass(frozen=True)
class Request:
    """One job, a chain of jobs, or an array of jobs. Counts of nodes and GPUs, seconds where a name ends in _s."""

    config: Path
    overrides: tuple[str, ...] = ()
    nodes: int = 1
    gpus_per_node: int = 8
    partition: str | None = None
    account: str | None = None
    time: str | None = None
    qos: str | None = None
    exclude: str | None = None
    cpus_per_task: int | None = None
    mem: str | None = None
    sbatch: tuple[str, ...] = ()  # further sbatch options, as constraint=h100
    setup: Path | None = None  # sourced by bash at the head of each task
    container_image: str | None = None
    container_runtime: Literal["pyxis", "apptainer"] = "pyxis"
    container_mounts: str | None = None
    export: tuple[str, ...] = ()
    python: str = "python"
    stop_before_s: int = 600
    max_requeues: int = 10
    chain: int = 1
    sweep: tuple[str, ...] = ()
    serve: str | None = None
    serve_nodes: int = 0
    serve_gpus_per_node: int | None = None
    serve_partition: str | None = None
    serve_urls: str | None = None
    serve_deadline_s: int = 1800

    def settings(self) -> list[tuple[tuple[str, ...], Config]]:
        """(overrides, resolved configuration) of each run: one, or one for each point of the sweep."""
        served = (f"{self.serve_urls}=['{URL}']",) if self.serve_urls else ()
        runs = []
        for point in _points(self.sweep):
            name = load_config(self.config, [*self.overrides, *served]).run.name
            named = (f"run.name={'-'.join([name, *map(_in_a_name, point)])}",) if point else ()
            overrides = (*point, *named)
            runs.append((overrides, load_config(self.config, [*self.overrides, *served, *overrides])))
        return runs

    def renamed(self) -> Request:
        """Under the first of NAME, NAME-2, ... that is free for all its runs."""
        first, *_ = runs = [config.run for _, config in self.settings()]
        name = load_config(self.config, self.overrides).run.name
        endings = [run.name.removeprefix(name) for run in runs]
        chosen = new_name(Path(first.folder), name, endings)
        return replace(self, overrides=(*self.overrides, f"run.name={chosen}"))

    @property
    def placement(self) -> Literal["colocated", "split", "disjoint", "heterogeneous"]:
        """Where servers run: nowhere else, beside the trainer's ranks, on nodes of their own, or on other nodes."""
        if self.serve is None:
            return "colocated"
        if not self.serve_nodes:
            return "split"
        other_gpus = self.serve_gpus_per_node not in (None, self.gpus_per_node)
        return "heterogeneous" if other_gpus or self.serve_partition else "disjoint"

    @property
    def trainer_gpus_per_node(self) -> int:
        """In a split, those that the servers of --serve leave."""
        return self.gpus_per_node - (self.serve_gpus_per_node or 0 if self.placement == "split" else 0)

    @property
    def ranks_per_node(self) -> int:
        """A rank a GPU, of those that servers leave. Raises UserError: they leave none, or not as many in each run."""
        laid_out = [lay_out(config, self.nodes, self.trainer_gpus_per_node) for _, config in self.settings()]
        ranks = {nodes[0].ranks for nodes in laid_out}
        if len(ranks) > 1:
            raise UserError(
                f"--sweep: servers leave {' or '.join(map(str, sorted(ranks)))} GPUs of a node to train, and the jobs "
                f"of an array have as many ranks each: submit each point by itself"
            )
        return ranks.pop()

    @property
    def exported(self) -> tuple[str, ...]:
        """Names of the variables that the job gets. Raises UserError: a pattern of --export that none here matches."""
        names = list(EXPORTED)
        for asked in self.export:
            found = sorted(fnmatch.filter(os.environ, asked)) if re.search(r"[*?[]", asked) else [asked]
            if not found:
                raise UserError(f"--export {asked!r} matches no variable of this shell: export one, or leave it out")
            names += found
        return tuple(dict.fromkeys(names))

    @property
    def servers(self) -> int:
        """One a serving node."""
        return 0 if self.serve is None else self.serve_nodes or self.nodes


def this_python() -> str:
    """The running interpreter, as its environment names it; relative to the current folder where it lies within."""
    path = Path(sys.executable)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _points(sweep: tuple[str, ...]) -> list[tuple[str, ...]]:
    """`a.b=1,2` and `c=3,4` -> the four combinations, as overrides."""
    axes = []
    for axis in sweep:
        key, equals, values = axis.partition("=")
        if not (equals and key and all(values.split(","))):
            raise UserError(f"--sweep {axis!r}: write section.key=value,value, as in algorithm.lambda=1.0,1.25")
        axes.append([f"{key}={value}" for value in values.split(",")])
    return list(product(*axes))


def _in_a_name(override: str) -> str:
    """lambda1.25 of a number, engine-sglang of a word; a path names itself, as a model's last folder."""
    key, _, value = override.partition("=")
    last = key.rpartition(".")[2]
    if last in OF_PATHS or "/" in value:
        said = _last_folder(value)
    else:
        said = f"{last}{'' if re.match(r'[+-]?[0-9.]', value) else '-'}{value}"
    return re.sub(r"[^A-Za-z0-9._-]+", "_", said).strip("_")


def _last_folder(path: str) -> str:
    """Of runs/NAME/model and NAME/checkpoints/step-20, the NAME with what follows; else the last name."""
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    at = next((number for number, part in enumerate(parts) if part in ("model", "checkpoints")), None)
    return "-".join(parts[at - 1 :]).removesuffix("-model") if at else parts[-1] if parts else path
