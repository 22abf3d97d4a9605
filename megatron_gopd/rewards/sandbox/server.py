"""A program of its own inside the sandbox: the answer's functions, for a checker in another process to call."""

import builtins
import contextlib
import functools
import io
import os
import pickle
import struct
import sys
import types

SAFE = {  # what a reply may name: plain types, and how they are made anew
    "builtins": "int float str bytes list tuple dict set frozenset complex bytearray range slice bool",
    "collections": "OrderedDict Counter deque defaultdict",
    "datetime": "date time datetime timedelta timezone",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "numpy": "ndarray dtype",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy.core.multiarray": "_reconstruct scalar",
    "_codecs": "encode",
}
PROTOCOLS = ("__call__", "__iter__", "__next__", "__len__", "__bool__", "__getitem__", "__setitem__", "__delitem__")
VIEWS = {type({}.keys()): "keys", type({}.items()): "items", type({}.values()): "values"}
HELD = {
    int: int.__int__,
    float: float.__float__,
    str: str.__str__,
    bytes: bytes,
    tuple: tuple,
    frozenset: frozenset,
}  # types whose subclasses (namedtuples, enumerations) are told by what they hold -> how that is read

FUNCTIONS = (type, types.FunctionType, types.BuiltinFunctionType)
KEPT, NUMBERS = [], {}  # objects that the checker knows by number; id -> number


class Pickler(pickle.Pickler):
    """Sends plain values; of anything else what it holds, and a number by which the checker can hand it back."""

    def persistent_id(self, value):
        if is_plain(value):
            return None
        for kind, name in VIEWS.items():
            if isinstance(value, kind):
                return name, list(value)
        if id(value) in Checker.numbers:
            return "yours", Checker.numbers[id(value)]
        if id(value) not in NUMBERS:
            NUMBERS[id(value)] = len(KEPT)
            KEPT.append(value)
        for kind, held in HELD.items():
            if isinstance(value, kind):
                return "held", NUMBERS[id(value)], held(value)
        known = {name for kind in type(value).__mro__ for name in vars(kind)}
        return "object", NUMBERS[id(value)], [name for name in PROTOCOLS if name in known]


class Checker:
    """The other end: what it asks is answered, and functions that it gives as arguments are called there."""

    numbers, functions = {}, {}  # id of a function -> number -> the function

    def __init__(self, solution):
        self.solution = solution
        self.requests, self.replies = os.fdopen(3, "rb"), os.fdopen(4, "wb")

    def serve(self):
        """Answer calls until one of ours returns: (kind, values)."""
        while True:
            unpickler = pickle.Unpickler(self.requests)
            unpickler.persistent_load = self.load
            kind, *values = unpickler.load()
            if kind != "call":
                return kind, values
            function, args, kwargs = values
            self.answer(lambda: function(*args, **kwargs))  # noqa: B023  called at once

    def answer(self, function):
        try:
            data = pickled(("value", function()))
        except BaseException as error:
            data = pickled(("error", *told(error)))
        self.send(data)

    def send(self, data):
        self.replies.write(struct.pack("<Q", len(data)) + data)
        self.replies.flush()

    def load(self, name):
        """An object that was sent before (number), a function of the tests (its number, alone), or of the answer."""
        if isinstance(name, int):
            return KEPT[name]
        if isinstance(name, str):
            return resolve(self.solution, name)
        (number,) = name
        if number not in self.functions:

            def function(*args, **kwargs):
                self.send(pickled(("call", number, args, kwargs)))
                kind, values = self.serve()
                if kind == "error":
                    raise exception(*values)
                return values[0]

            self.functions[number] = function
            self.numbers[id(function)] = number
        return self.functions[number]


def main():
    solution = types.ModuleType("solution")
    sys.modules["solution"] = solution
    path = __file__.replace("server.py", "solution.py")
    with open(path, encoding="utf-8") as file:
        source = file.read()

    def load():
        exec(compile(source, path, "exec"), solution.__dict__)
        return {name: value for name, value in vars(solution).items() if callable(value)}

    checker = Checker(solution)
    checker.answer(load)
    checker.serve()


def resolve(solution, name):
    """A function of the answer, or of its class Solution; where there is none, calling it says so."""
    if hasattr(solution, name):
        return getattr(solution, name)
    if hasattr(solution, "Solution"):
        return lambda *args, **kwargs: getattr(solution.Solution(), name)(*args, **kwargs)
    return lambda *args, **kwargs: getattr(solution, name)


def told(error):
    """(class, text) of an error: of a class of the answer's own, the builtin one that it is made from."""
    kind = type(error)
    known = next(each for each in kind.__mro__ if each.__module__ == "builtins")
    if known in (kind, Exception):
        return kind.__name__, str(error)[:200]
    return known.__name__, f"{kind.__name__}: {error}"[:200]


def exception(name, text):
    """An error of the other process, of a builtin class where it has one."""
    known = getattr(builtins, str(name), None)
    is_error = isinstance(known, type) and issubclass(known, Exception)
    return known(text) if is_error else RuntimeError(f"{name}: {text}")


def is_plain(value):
    if isinstance(value, FUNCTIONS):  # as which plain values are made anew
        return value.__name__ in SAFE.get(str(value.__module__), "").split()
    return value is None or is_plain_type(type(value))


@functools.cache
def is_plain_type(kind):
    if kind.__name__ in SAFE.get(kind.__module__, "").split():
        return True
    return kind.__module__.split(".")[0] == "numpy" and any(k.__name__ in ("generic", "dtype") for k in kind.__mro__)


def pickled(value):
    buffer = io.BytesIO()
    Pickler(buffer, protocol=4).dump(value)
    return buffer.getvalue()


if __name__ == "__main__":
    with contextlib.suppress(EOFError):  # the checker is done
        main()
