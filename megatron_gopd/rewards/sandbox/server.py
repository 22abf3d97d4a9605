"""A program of its own inside the sandbox: the answer's functions, for a checker in another process to call."""

import builtins
import contextlib
import functools
import json
import os
import pickle
import struct
import sys
import types
from binascii import b2a_base64

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

SIMPLE = {type(None), bool, float, str}
BIG = 1 << 63  # JSON has integers of any size; those in decimal digits take long to read
KEPT, NUMBERS = [], {}  # objects that the checker knows by number; id -> number


def pairs(value):
    return [[key, each] for key, each in value.items()]


def base64(data):
    return b2a_base64(data, newline=False).decode()


def bounds(value):
    return [value.start, value.stop, value.step]


def isoformat(value):
    return value.isoformat()


SENT = {  # class -> what of a value is sent; `replies.py` makes it anew
    "builtins.tuple": list,
    "builtins.set": list,
    "builtins.frozenset": list,
    "builtins.dict": pairs,
    "builtins.bytes": base64,
    "builtins.bytearray": base64,
    "builtins.complex": lambda value: [value.real, value.imag],
    "builtins.range": bounds,
    "builtins.slice": bounds,
    "collections.OrderedDict": pairs,
    "collections.Counter": pairs,
    "collections.deque": list,
    "collections.defaultdict": lambda value: [value.default_factory, pairs(value)],
    "datetime.date": isoformat,
    "datetime.time": isoformat,
    "datetime.datetime": isoformat,
    "datetime.timedelta": lambda value: [value.days, value.seconds, value.microseconds],
    "datetime.timezone": lambda value: value.utcoffset(None),
    "decimal.Decimal": str,
    "fractions.Fraction": lambda value: [value.numerator, value.denominator],
}
TYPES = {*SENT, *("builtins." + name for name in "int float str bool list".split())}
ARRAYS = "biufcSUmM"  # kinds of dtype: numbers, text, dates


def encoded(value):
    """As JSON holds it. What has no name there becomes {kind: what is sent of it}."""
    kind = type(value)
    if kind in SIMPLE or (kind is int and -BIG < value < BIG):
        return value
    if kind is list:
        return [encoded(each) for each in value]
    if kind is int:
        return {"big": hex(value)}
    name = class_name(kind)
    if name in SENT:
        return {name: encoded(SENT[name](value))}
    if kind is type and class_name(value) in TYPES:
        return {"type": class_name(value)}
    return of_numpy(name, value) or kept(value)


@functools.cache
def class_name(kind):
    return f"{kind.__module__}.{kind.__qualname__}"


def of_numpy(name, value):
    """Arrays, their single values and dtypes; None for anything else."""
    if not name.startswith("numpy."):
        return None
    numpy = sys.modules["numpy"]
    if isinstance(value, numpy.dtype):
        return {"dtype": value.str} if value.kind in ARRAYS else None
    if name == "numpy.ndarray" and value.dtype.kind == "O":
        return {"objects": [list(value.shape), [encoded(each) for each in value.flat]]}
    if not (name == "numpy.ndarray" or isinstance(value, numpy.generic)) or value.dtype.kind not in ARRAYS:
        return None
    kind = "array" if name == "numpy.ndarray" else "scalar"
    return {kind: [value.dtype.str, list(value.shape), base64(value.tobytes())]}


def kept(value):
    """What is no plain value stays here: what it holds, and a number by which the checker can hand it back."""
    for kind, name in VIEWS.items():
        if isinstance(value, kind):
            return {name: encoded(list(value))}
    if id(value) in Checker.numbers:
        return {"yours": Checker.numbers[id(value)]}
    if id(value) not in NUMBERS:
        NUMBERS[id(value)] = len(KEPT)
        KEPT.append(value)
    for kind, held in HELD.items():
        if isinstance(value, kind):
            return {"held": [NUMBERS[id(value)], encoded(held(value))]}
    known = {name for kind in type(value).__mro__ for name in vars(kind)}
    return {"object": [NUMBERS[id(value)], [name for name in PROTOCOLS if name in known]]}


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
            reply = encoded(["value", function()])
        except BaseException as error:
            reply = ["error", *told(error)]
        self.send(reply)

    def send(self, reply):
        data = json.dumps(reply).encode()
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
                self.send(encoded(["call", number, args, kwargs]))
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


if __name__ == "__main__":
    with contextlib.suppress(EOFError):  # the checker is done
        main()
