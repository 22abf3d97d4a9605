"""Objects of the program, in the process that holds the tests: they are used there and stay where they are."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from functools import cache

from megatron_gopd.rewards.sandbox.server import HELD, PROTOCOLS


class StoppedError(RuntimeError):
    """The answer raised StopIteration. As that, it would end a `for` or `map` of the tests without a word."""


class Remote:
    """An object of the program. It is equal to itself alone: what it says of its equality counts for nothing.

    Comparison, arithmetic and `in` are not asked of it for the same reason, nor are attributes that begin with two
    underscores, which numpy reads addresses from.
    """

    __remote__ = (None, None)  # the link to the program, and how it calls this object

    def __getattr__(self, name: str):
        if name.startswith("__") and name != "__name__":
            raise AttributeError(name)
        return _ask(self, getattr, name)

    def __setattr__(self, name: str, value: object) -> None:
        _ask(self, setattr, name, value)

    def __str__(self) -> str:
        return _ask(self, str)

    def __repr__(self) -> str:
        return _ask(self, repr)

    def __instancecheck__(self, value: object) -> bool:
        return self.__remote__[0].call(isinstance, value, self)


def named(link, name: str) -> Remote:
    """A function that the program defines, or its class Solution."""
    return _remote(_class_with(("__call__",))(), link, name)


def numbered(link, number: int, protocols: list[str]) -> Remote:
    """An object with those of PROTOCOLS that its type has."""
    return _remote(_class_with(tuple(name for name in PROTOCOLS if name in protocols))(), link, number)


def holding(link, number: int, value: object) -> object:
    """A subclass's object, such as a namedtuple, that is `value` to all operators and has the program's attributes."""
    if type(value) not in HELD:
        raise TypeError(f"what holds a {type(value).__name__} is no plain value")
    return _remote(_subclass_of(type(value))(value), link, number)


def under(view: str, values: Iterable) -> dict:
    """A dictionary with these keys, items or values."""
    return {"keys": dict.fromkeys, "items": dict, "values": lambda each: dict(enumerate(each))}[view](values)


def listed(value: object) -> object:
    """All items of an object that is iterated over, at once; any other value as it is."""
    fetched = isinstance(value, Remote) and hasattr(type(value), "__iter__") and not isinstance(value, tuple(HELD))
    return _ask(value, list) if fetched else value


def _remote(value: Remote, link, target: int | str) -> Remote:
    object.__setattr__(value, "__remote__", (link, target))
    return value


@cache
def _class_with(protocols: tuple[str, ...]) -> type[Remote]:
    return type("Remote", (Remote,), {name: _METHODS[name] for name in protocols})


@cache
def _subclass_of(kind: type) -> type[Remote]:
    return type("Remote", (Remote, kind), {})


def _ask(remote: Remote, function, *args):
    return remote.__remote__[0].call(function, remote, *args)


def _call(self, *args, **kwargs):
    return self.__remote__[0].call(self, *args, **kwargs)


def _next(self):
    try:
        return _ask(self, next)
    except StoppedError:
        raise StopIteration from None


_METHODS = {
    "__call__": _call,
    "__iter__": lambda self: _ask(self, iter),
    "__next__": _next,
    "__len__": lambda self: _ask(self, len),
    "__bool__": lambda self: _ask(self, bool),
    "__getitem__": lambda self, key: _ask(self, operator.getitem, key),
    "__setitem__": lambda self, key, value: _ask(self, operator.setitem, key, value),
    "__delitem__": lambda self, key: _ask(self, operator.delitem, key),
}
