"""Holds the tests and calls the answer's functions, which live in another process of the sandbox.

Requests are pickled. Replies are not: they come from a program that may be hostile.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
import types
from typing import NoReturn

from megatron_gopd.rewards.entry import names_for
from megatron_gopd.rewards.sandbox import remote
from megatron_gopd.rewards.sandbox.programs import Outcome
from megatron_gopd.rewards.sandbox.replies import value_of
from megatron_gopd.rewards.sandbox.server import VIEWS, exception
from megatron_gopd.rewards.tests import Calls, Tests, same_value

REQUESTS, REPLIES, VERDICT = 3, 4, 5  # descriptors: what tests print is no verdict
MAX_REPLY = 1 << 28  # bytes
ENDED_EARLY = "the program ended early"
MODULE = "tests"  # what the tests' own functions say they are from


class Link:
    """Calls into the program. Where its process ends, or sends what is no reply, the tests end: no `except` of theirs
    takes that for an error. The referee ends what waits too long.
    """

    def __init__(self) -> None:
        self.functions: list = []  # of the tests, which the program may call
        self.objects: dict = {}  # number -> an object of the program

    def call(self, function, *args, **kwargs):
        """`function` is a Remote, or what the program's Python can import."""
        self._send(self._pickled(("call", function, args, kwargs)))
        return self.reply()

    def reply(self):
        """What a call returned, after the program's own calls of the tests' functions.

        Raises what the call raised.
        """
        while True:
            kind, *values = self._receive()
            if kind == "value":
                return values[0]
            if kind == "error":
                error = exception(*values)
                if isinstance(error, StopIteration | StopAsyncIteration):
                    raise remote.StoppedError(f"{values[0]}: {values[1]}")
                raise error
            if kind != "call":
                _end("a reply of no known kind")
            self._send(self._called(*values))

    def _called(self, number: int, args: tuple, kwargs: dict) -> bytes:
        try:
            return self._pickled(("value", self.functions[number](*args, **kwargs)))
        except Exception as error:  # noqa: BLE001  for the program to see
            return self._pickled(("error", type(error).__name__, str(error)[:200]))

    def _pickled(self, message: tuple) -> bytes:
        buffer = io.BytesIO()
        pickler = _Pickler(buffer, protocol=4)
        pickler.link = self
        pickler.dump(message)
        return buffer.getvalue()

    def _receive(self):
        (size,) = struct.unpack("<Q", self._read(8))
        if size > MAX_REPLY:
            _end("a reply of more than 256 MiB")
        try:
            kind, *values = value_of(self._read(size), self._kept)
        except Exception as error:  # noqa: BLE001  whatever is wrong with it
            _end(f"a reply that cannot be read: {error}"[:150])
        return kind, *values

    def _kept(self, kind: str, sent):
        """What stayed with the program, or never left the tests."""
        if kind == "yours":
            return self.functions[sent]
        if kind in ("keys", "items", "values"):
            return getattr(remote.under(kind, sent), kind)()
        number = sent[0]
        if number not in self.objects:
            make = {"object": remote.numbered, "held": remote.holding}[kind]
            self.objects[number] = make(self, *sent)
        return self.objects[number]

    def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(REQUESTS, view) :]
            except BrokenPipeError:
                _end(ENDED_EARLY)

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            chunk = os.read(REPLIES, min(size - len(data), 1 << 20))
            if not chunk:
                _end(ENDED_EARLY)
            data += chunk
        return bytes(data)


class _Pickler(pickle.Pickler):
    """Sends values, objects of the program by their number, and functions of the tests by theirs, (number,)."""

    link: Link

    def persistent_id(self, value):
        if isinstance(value, remote.Remote):
            return value.__remote__[1]
        if not isinstance(value, types.FunctionType) or value.__module__ != MODULE:
            return None
        if value not in self.link.functions:
            self.link.functions.append(value)
        return (self.link.functions.index(value),)

    def reducer_override(self, value):
        if kind := VIEWS.get(type(value)):
            return getattr(dict, kind), (remote.under(kind, value),)
        return (iter, (list(value),)) if isinstance(value, types.GeneratorType) else NotImplemented


def check(tests: Tests) -> None:
    """The whole life of the checker's process: write a line for each test that begins, then the verdict.

    The verdict is JSON, {"problem": text or null}.
    """
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    sys.set_int_max_str_digits(0)  # as in the program
    _end(_problem(Link(), tests))


def _end(problem: str | None) -> NoReturn:
    os.write(VERDICT, json.dumps({"problem": problem}).encode())
    os._exit(0)


def verdict(outcome: Outcome) -> str | None:
    """What `check` wrote; where the program ended by itself, with the last line it wrote of an error."""
    begun = max(1, outcome.output.count(b"\n"))
    if outcome.problem:
        return f"test {begun}: timeout" if outcome.problem == "timeout" else outcome.problem
    said = outcome.output.rpartition(b"\n")[2]
    if outcome.status or not said:
        return "the tests were ended"
    problem = json.loads(said)["problem"]
    last = outcome.errors.decode(errors="replace").strip().rsplit("\n", 1)[-1][:200]
    told = f"{problem}: {last}" if problem == ENDED_EARLY and last else problem
    return f"test {begun}: {told}" if problem else None


def _problem(link: Link, tests: Tests) -> str | None:
    try:
        defined = link.reply()  # name -> function or class, once the program has run
        for test in _steps(link, tests, defined):
            os.write(VERDICT, b"\n")
            if not test():
                return "wrong answer"
    except AssertionError as error:
        return f"wrong answer {error}".rstrip()[:200]
    except BaseException as error:  # noqa: BLE001  from the program, or a test that cannot work with what it returns
        return f"{type(error).__name__}: {error}"[:200]
    return None


def _steps(link: Link, tests: Tests, defined: dict[str, object]):
    """One function a test: true, or wrong, or it raises."""
    if isinstance(tests, Calls):
        function = remote.named(link, tests.function)
        for args, expected in tests.cases:
            yield lambda args=args, expected=expected: same_value(remote.listed(function(*args)), expected)
        return
    namespace = {"__name__": MODULE} | {name: defined[name] for name in names_for(tests, defined)}
    for block in tests.blocks:
        yield lambda block=block: exec(_compiled(block), namespace) is None


def _compiled(block: str):
    """With assertions, whatever this Python was started with, and without this file's imports from __future__."""
    return compile(block, MODULE, "exec", dont_inherit=True, optimize=0)
