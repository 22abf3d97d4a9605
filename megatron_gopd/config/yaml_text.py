"""YAML that anybody may have written -> plain values, soon, or an error."""

from __future__ import annotations

import re

import yaml

MOST_VALUES = 100_000  # of a text, counted as often as aliases repeat them


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads `1e-5` as a number (PyYAML wants a dot in it), and `1:30` as text (PyYAML: 90)."""


_NUMBERS = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "float")}
_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, re.compile(rf"(?!.*\d:)(?:{pattern.pattern})", pattern.flags) if tag in _NUMBERS else pattern)
        for tag, pattern in resolvers
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))


class Unreadable(yaml.MarkedYAMLError):
    """What PyYAML would read, or try to, for too long or with another exception."""


def read_yaml(text: str) -> tuple[object, yaml.Node | None]:
    """The values, and where they stand. Raises yaml.YAMLError, whatever is wrong."""
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is not None and _values(node, {}, set()) > MOST_VALUES:
            raise Unreadable(problem=f"it holds more than {MOST_VALUES} values, as its aliases repeat them")
        return yaml.load(text, Loader=_Loader), node
    except RecursionError:
        raise Unreadable(problem="it is nested too deeply") from None
    except (ValueError, TypeError, OverflowError, AttributeError) as error:  # a date or a number that is none
        raise Unreadable(problem=str(error)) from None


def _values(node: yaml.Node, counted: dict[int, int], around: set[int]) -> int:
    """How many `node` stands for; `around`: the nodes that it is within."""
    if id(node) in around:
        raise Unreadable(problem="an alias stands within what it is an alias of", problem_mark=node.start_mark)
    if id(node) not in counted:
        pairs = node.value if isinstance(node, yaml.CollectionNode) else []
        within = [each for pair in pairs for each in (pair if isinstance(pair, tuple) else [pair])]
        counted[id(node)] = 1 + sum(_values(each, counted, around | {id(node)}) for each in within)
    return counted[id(node)]
