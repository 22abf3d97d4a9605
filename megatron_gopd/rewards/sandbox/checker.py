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

from megatron_gopd.rewards.entry import names_for
from megatron_gopd.rewards.sandbox import remote
from megatron_gopd.rewards.sandbox.programs import Outcome
from megatron_gopd.rewards.sandbox.replies import value_of
from megatron_gopd.rewards.sandbox.server import VIEWS, exception
from megatron_gopd.rewards.tests import Calls, Tests, same_value

REQUESTS, REPLIES, VERDICT = 3, 4, 1  # descriptors
MAX_REPLY = 1 << 28  # bytes
MODULE = "tests"  # what the tests' own functions say they are from


class EndedError(BaseException):
    """The program's process ended, or sent what is no reply. No `except Exception` of a test takes it for an error."""


class Link:
    """Calls into the program; `failure` is what ended the program's part. The referee ends what waits too long."""

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        self.functions: list = []  # of the tests, which the program may call
        self.objects: dict = {}  # number -> an object of the program

    def call(self, function, *args, **kwargs):
        """`function` is a Remote, or what the program's Python can import."""
        self._send(self._pickled(("call", function, args, kwargs)))
        return self.reply()

    def reply(self):
        """What a call returned, after the program's own calls of the tests' functions.

        Raises what the call raised, or EndedError.
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
                raise self.failed(EndedError("a reply of no known kind"))
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
            raise self.failed(EndedError("a reply of more than 256 MiB"))
        try:
            kind, *values = value_of(self._read(size), self._kept)
        except Exception as error:  # noqa: BLE001  whatever is wrong with it
            raise self.failed(EndedError(f"a reply that cannot be read: {error}"[:150])) from None
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
                raise self.failed(EndedError("the program ended early")) from None

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            chunk = os.read(REPLIES, min(size - len(data), 1 << 20))
            if not chunk:
                raise self.failed(EndedError("the program ended early"))
            data += chunk
        return bytes(data)

    def failed(self, error: BaseException) -> BaseException:
        self.failure = error
        return error


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
    problem = _problem(Link(), tests)
    os.write(VERDICT, json.dumps({"problem": problem}).encode())
    os._exit(0)


def verdict(outcome: Outcome) -> str | None:
    """What `check` wrote; where the program ended by itself, with the last line it wrote of an error."""
    said = outcome.output.rpartition(b"\n")[2]
    if outcome.problem == "timeout":
        begun = outcome.output.count(b"\n")
        return f"test {max(1, begun)}: timeout"
    if outcome.problem or not said:
        return outcome.problem or "the tests were ended"
    problem = json.loads(said)["problem"]
    last = outcome.errors.decode(errors="replace").strip().rsplit("\n", 1)[-1][:200]
    return f"{problem}: {last}" if problem and "ended early" in problem and last else problem


def _problem(link: Link, tests: Tests) -> str | None:
    number = 1
    try:
        defined = link.reply()  # name -> function or class, once the program has run
        for number, test in enumerate(_steps(link, tests, defined), 1):
            os.write(VERDICT, b"\n")
            if not test():
                return f"test {number}: wrong answer"
            if link.failure:  # which a bare `except` of the test has taken for an error
                raise link.failure
    except AssertionError as error:
        return f"test {number}: wrong answer {error}".rstrip()[:200]
    except BaseException as error:  # noqa: BLE001  from the program, or a test that cannot work with what it returns
        return f"test {number}: {type(error).__name__}: {error}"[:200]
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
