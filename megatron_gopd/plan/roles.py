"""The models of a run, each once, as they will be held on GPUs; their config.json is all that is read."""

from __future__ import annotations

import functools
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from megatron_gopd.config import Config, schema
from megatron_gopd.config.hub import hub_name
from megatron_gopd.errors import UserError
from megatron_gopd.mcore.architecture import Architecture

STUDENT = "student"
_WRITTEN: dict[str, str] = {}  # folder that stands for a model -> the model, as the configuration names it


@dataclass(frozen=True)
class Role:
    """A model in this job."""

    names: tuple[str, ...]  # as the configuration calls it: teachers.math, the reference of teachers.math
    settings: schema.Model
    architecture: Architecture

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def trained(self) -> bool:
        return self.name == STUDENT


def located(config: Config, models: Path) -> tuple[Config, list[str]]:
    """The configuration with every model directory that is not here replaced by one in `models`, and what was replaced.

    A folder of `models` stands for a directory of the same name, or of a name that goes on after a hyphen
    (Qwen3-4B for Qwen3-4B-Non-Thinking-RL-Math): a variant of a model has its architecture.

    Raises:
        UserError: neither is there.
    """
    found: dict[str, Path] = {}

    def place(settings: schema.Model) -> dict:
        if (Path(settings.model) / "config.json").exists():
            return {}
        found.setdefault(settings.model, _stand_in(settings.model, models))
        return {"model": str(_variant(settings.model, found[settings.model]))}

    return with_each_model(config, place), [f"{path}: {folder} stands for it" for path, folder in found.items()]


def _stand_in(path: str, models: Path) -> Path:
    name = Path(path).name
    known = sorted((file.parent for file in models.glob("*/config.json")), key=lambda folder: -len(folder.name))
    for folder in known:
        if name == folder.name or name.startswith(f"{folder.name}-"):
            return folder
    hub = hub_name(path)
    download = f" (from the hub: hf download {hub} config.json --local-dir {models}/{name})" if hub else ""
    raise UserError(
        f"{path} is not here, and nothing in {models} stands for it ({', '.join(f.name for f in known) or 'empty'}): "
        f"a folder {models}/{name} with the model's config.json is enough{download}; --models names another place"
    )


@functools.cache
def _variants() -> TemporaryDirectory:
    return TemporaryDirectory(prefix="megatron-gopd-plan-")  # until this process ends


def _variant(path: str, stand_in: Path) -> Path:
    """A folder of its own, of the model's own name: two variants of a model are two models in a job."""
    folder = Path(_variants().name, hashlib.sha256(path.encode()).hexdigest()[:12], Path(path).name)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(stand_in / "config.json", folder / "config.json")
    _WRITTEN[str(folder)] = path
    return folder


def as_written(message: str) -> str:
    """A message that names models as the configuration does."""
    for folder, path in _WRITTEN.items():
        message = message.replace(folder, path)
    return message


def with_each_model(config: Config, change: Callable[[schema.Model], dict]) -> Config:
    """`change(settings) -> {field: value}` made at the student, at every teacher, and at their references."""

    def changed(settings: schema.Model) -> schema.Model:
        update = change(settings)
        if reference := getattr(settings, "reference", None):
            update = update | {"reference": changed(reference)}
        return settings.model_copy(update=update)

    update = {"student": changed(config.student), "teachers": {n: changed(t) for n, t in config.teachers.items()}}
    if reference := getattr(config.algorithm, "reference", None):
        update["algorithm"] = config.algorithm.model_copy(update={"reference": changed(reference)})
    return config.model_copy(update=update)


def roles_of(config: Config) -> list[Role]:
    """The student, and every distinct frozen model that this job holds itself, as policies.Scorers tells them apart."""
    named: dict[str, tuple[list[str], schema.Model]] = {}
    for name, settings in config.scorers().items():
        scorer = schema.Scorer(**settings.model_dump(include=set(schema.Scorer.model_fields)))
        if scorer.engine == "megatron":
            named.setdefault(scorer.model_dump_json(), ([], scorer))[0].append(name)
    scorers = [Role(tuple(names), settings, Architecture.read(settings.model)) for names, settings in named.values()]
    return [Role((STUDENT,), config.student, Architecture.read(config.student.model)), *scorers]


def without_levers(config: Config) -> Config:
    """What is built on fake ranks: nothing moves to the host, and FP8 is a matter of arithmetic, not of shapes."""
    plain = with_each_model(config, lambda settings: {"offload": False, "fp8": None})
    return plain.model_copy(update={"student": plain.student.model_copy(update={"overlap_communication": False})})
