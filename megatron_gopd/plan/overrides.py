"""What the search found, as keys that the configuration takes."""

from __future__ import annotations

import json

import yaml

from megatron_gopd.config import Layout
from megatron_gopd.plan.roles import Role, as_written


def dotted(overrides: dict[str, object]) -> list[str]:
    """As the command line takes them."""
    return [f"{key}={json.dumps(value)}" for key, value in overrides.items()]


def as_yaml(overrides: dict[str, object]) -> str:
    """Dotted keys -> a tree that can be merged into the configuration."""
    tree: dict = {}
    for key, value in overrides.items():
        *path, last = key.split(".")
        node = tree
        for name in path:
            node = node.setdefault(name, {})
        node[last] = value
    return yaml.safe_dump(tree, sort_keys=False)


def of_layout(role: Role, before: Layout) -> dict[str, object]:
    """Of everybody that the role is. A reference may be nowhere in the file: its model is written, too."""
    written: dict[str, object] = {}
    for name in role.names:
        key = name
        if name.startswith("the reference"):
            teacher = name.removeprefix("the reference").removeprefix(" of ")
            key = f"{teacher or 'algorithm'}.reference"
            model = role.settings.model_dump(mode="json", include={"model", "dtype", "fp8"}, exclude_defaults=True)
            written |= {f"{key}.{what}": as_written(value) for what, value in model.items()}
        written[f"{key}.layout"] = _written(role.settings.layout, before)
    return written


def _written(layout: Layout, before: Layout) -> dict:
    """What is not by default, and what takes the place of something that was not."""
    keys = {*layout.model_dump(exclude_defaults=True), *before.model_dump(exclude_defaults=True)}
    return layout.model_dump(mode="json", include=keys)
