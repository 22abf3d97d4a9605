"""YAML file and dotted overrides -> Config, with errors that name the file, the line and the key."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from megatron_gopd.config.algorithms import ALGORITHMS, section_of, tag
from megatron_gopd.config.objective import AS_WRITTEN
from megatron_gopd.config.schema import Config
from megatron_gopd.config.secret import looks_secret, refusal, refuse_secrets
from megatron_gopd.config.words import in_words
from megatron_gopd.config.yaml_text import read_yaml
from megatron_gopd.errors import UserError

Key = tuple[str | int, ...]


def load_config(path: str | Path, overrides: list[str] = ()) -> Config:
    """Read `path`, apply overrides such as `optimizer.lr=1e-5`, validate.

    Raises UserError naming file, line and key for every problem found.
    """
    path = Path(path)
    tree, places = _read(path)
    refuse_secrets(tree, str(path))
    for override in overrides:
        key = _apply(tree, override)
        places = {place: where for place, where in places.items() if place[: len(key)] != key}
        for n in range(len(key), 0, -1):
            places.setdefault(key[:n], f"override {override!r}")
    return _validated(tree, places, path)


def read_config(path: str | Path) -> Config:
    """The configuration of a run that is only looked at: code of the user's own in it is not run, nor need be there.

    Raises UserError as load_config does.
    """
    return _validated(*_read(Path(path)), Path(path), AS_WRITTEN)


def _validated(tree: dict, places: dict[Key, str], path: Path, context: dict | None = None) -> Config:
    try:
        return Config.model_validate(tree, context=context)
    except ValidationError as error:
        problems = [_explain(problem, places, path, tree) for problem in error.errors()]
        raise UserError("\n".join(dict.fromkeys(problems))) from None


def to_yaml(config: Config) -> str:
    """The resolved configuration, as YAML that `load_config` reads back to an equal Config."""
    return yaml.safe_dump(config.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)


def _read(path: Path) -> tuple[dict, dict[Key, str]]:
    """The plain tree, and where each key stands."""
    try:
        tree, node = read_yaml(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the configuration {path}: {getattr(error, 'strerror', error)}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{where}: not YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a configuration is a mapping of sections; start with `run:`")
    places: dict[Key, str] = {}
    _note_places(node, (), path, places)
    return tree, places


def _note_places(node: yaml.Node, key: Key, path: Path, places: dict[Key, str]) -> None:
    if isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            child = (*key, name.value)
            if child in places:
                raise UserError(f"{path}:{name.start_mark.line + 1}: the key {name.value!r} stands here twice")
            places[child] = f"{path}:{name.start_mark.line + 1}"
            _note_places(value, child, path, places)


def _apply(tree: dict, override: str) -> Key:
    dotted, equals, value = override.partition("=")
    if value and looks_secret(dotted.rpartition(".")[2], value):
        raise refusal(f"override {dotted}=...")
    key = tuple(dotted.split("."))
    if not equals or not all(key):
        raise UserError(f"cannot read the override {override!r}; write section.key=value, as in optimizer.lr=1e-5")
    try:
        parsed, _ = read_yaml(value)
    except yaml.YAMLError:
        raise UserError(f"override {override!r:.200}: the value is not YAML; quote it") from None
    refuse_secrets(parsed, f"override {dotted}=...")
    for name in key[:-1]:
        if not isinstance(tree.get(name), dict):
            tree[name] = {"model": tree[name]} if isinstance(tree.get(name), str) else {}
        tree = tree[name]
    tree[key[-1]] = parsed
    return key


def _explain(problem: dict, places: dict[Key, str], path: Path, tree: dict) -> str:
    location = tuple(part for part in problem["loc"] if part not in _UNION_BRANCHES)
    if problem["type"] == "algorithm":  # none of its types
        location = (*location, "type")
    dotted = ".".join(map(str, location))
    message = in_words(problem, *(_keys_at((*problem["loc"], *below), tree) for below in ((), ("NAME",))))
    about = location or tuple(message.split()[0].rstrip(":").split("."))  # what concerns the whole tree starts with it
    place = next((places[about[:n]] for n in range(len(about), 0, -1) if about[:n] in places), str(path))
    if problem["type"] == "extra_forbidden":
        return f"{place}: unknown key {dotted!r}{_known_keys(problem['loc'], tree)}"
    if problem["type"] == "missing":
        return f"{place}: {dotted!r} is missing"
    return f"{place}: {dotted + ': ' if dotted else ''}{message}"


# pydantic puts the branch of a union into an error's location; a reader wants the keys of the file only
_ALGORITHMS = set(map(tag, ALGORITHMS))
_UNION_BRANCHES = {f"prompt: {kind}" for kind in ("name", "suffix", "column", "context")} | _ALGORITHMS
_UNION_BRANCHES |= {"str", "list[str]"}


def _known_keys(location: Key, tree: dict) -> str:
    keys = _keys_at(location[:-1], tree)
    near = difflib.get_close_matches(str(location[-1]), keys, n=1)
    return f"; {f'did you mean {near[0]!r}? ' if near else ''}keys here: {', '.join(keys)}"


def _keys_at(location: Key, tree: dict) -> list[str]:
    return [key for section in _sections_at(location, tree) for key in _fields(section)]


def _fields(section: type[BaseModel]) -> dict[str, object]:
    """Key, as the file spells it -> annotation."""
    return {field.alias or name: field.annotation for name, field in section.model_fields.items()}


def _sections_at(location: Key, tree: dict) -> list[type[BaseModel]]:
    """The section classes that may stand at `location`: in mappings (`teachers.NAME`), of the algorithm's type."""
    sections, annotation, mapped = [Config], Config, None
    for name in location:
        if name in _ALGORITHMS:
            sections = list(filter(None, [section_of(tree["algorithm"])]))
        if name in _UNION_BRANCHES:
            continue
        annotation = mapped or next((fields[name] for fields in map(_fields, sections) if name in fields), None)
        mapped = get_args(annotation)[1] if get_origin(annotation) is dict else None
        sections = [] if mapped else _sections_in(annotation)
    return sections


def _sections_in(annotation) -> list[type[BaseModel]]:
    """The section classes of `Section | None`, `Annotated[Section, ...]` and the like."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections_in(part)]
