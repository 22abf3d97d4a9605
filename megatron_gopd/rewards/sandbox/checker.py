"""Holds the tests and calls the answer's functions, which live in another process of the sandbox."""

from __future__ import annotations

import io
import json
import os
import pickle
import select
import struct
import sys
import time
import types

from megatron_gopd.rewards.entry import names_for
from megatron_gopd.rewards.sandbox import remote
from megatron_gopd.rewards.sandbox.programs import Outcome
from megatron_gopd.rewards.sandbox.server import SAFE, VIEWS, exception
from megatron_gopd.rewards.tests import Calls, Tests, same_value

REQUESTS, REPLIES, VERDICT = 3, 4, 1  # descriptors
MAX_REPLY = 1 << 28  # bytes
MODULE = "tests"  # what the tests' own functions say they are from


class EndedError(BaseException):
    """The program's process ended, or sent what is no reply. No `except Exception` of a test takes it for an error."""


class LateError(BaseException):
    """The time of a test is over."""


class Link:
    """Calls into the program; `deadline` bounds the wait for a reply, `failure` is what ended the program's part."""

    def __init__(self) -> None:
        self.deadline = 0.0
        self.failure: BaseException | None = None
        self.functions: list = []  # of the tests, which the program may call
        self.objects: dict = {}  # number -> an object of the program

    def call(self, function, *args, **kwargs):
        """`function` is a Remote, or what the program's Python can import."""
        self._send(self._pickled(("call", function, args, kwargs)))
        return self.reply()

    def reply(self):
        """What a call returned, after the program's own calls of the tests' functions.

        Raises what the call raised, LateError or EndedError.
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
        unpickler = _Unpickler(io.BytesIO(self._read(size)))
        unpickler.link = self
        return unpickler.load()

    def _send(self, data: bytes) -> None:
        os.set_blocking(REQUESTS, False)
        view = memoryview(data)
        while view:
            self._wait(REQUESTS, select.POLLOUT)
            try:
                view = view[os.write(REQUESTS, view) :]
            except BrokenPipeError:
                raise self.failed(EndedError("the program ended early")) from None

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._wait(REPLIES, select.POLLIN)
            chunk = os.read(REPLIES, min(size - len(data), 1 << 20))
            if not chunk:
                raise self.failed(EndedError("the program ended early"))
            data += chunk
        return bytes(data)

    def _wait(self, descriptor: int, event: int) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        left = self.deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise self.failed(LateError())

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


class _Unpickler(pickle.Unpickler):
    """A reply comes from a program that may be hostile: it may name plain types only."""

    link: Link

    def find_class(self, module: str, name: str):
        if name in SAFE.get(module, "").split():
            return super().find_class(module, name)
        raise self.link.failed(EndedError(f"a reply that names {module}.{name}"[:100]))

    def persistent_load(self, description: tuple):
        kind, *values = description
        if kind == "yours":
            return self.link.functions[values[0]]
        if kind not in ("object", "held"):
            return getattr(remote.under(kind, *values), kind)()
        number = values[0]
        if number not in self.link.objects:
            make = remote.numbered if kind == "object" else remote.holding
            self.link.objects[number] = make(self.link, *values)
        return self.link.objects[number]


def check(tests: Tests, seconds_per_test: float, packages: str) -> None:
    """The whole life of the checker's process: write the verdict, JSON {"problem": text or null}."""
    sys.path.append(packages)  # what this process could import before is not there any more
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    link = Link()
    problem = _problem(link, tests, seconds_per_test)
    os.write(VERDICT, json.dumps({"problem": problem}).encode())
    os._exit(0)


def verdict(outcome: Outcome) -> str | None:
    """What `check` wrote; where the program ended by itself, with the last line it wrote of an error."""
    problem = json.loads(outcome.output)["problem"]
    last = outcome.errors.decode(errors="replace").strip().rsplit("\n", 1)[-1][:200]
    return f"{problem}: {last}" if problem and "ended early" in problem and last else problem


def _problem(link: Link, tests: Tests, seconds: float) -> str | None:
    number = 1
    try:
        link.deadline = time.monotonic() + seconds
        defined = link.reply()  # name -> function or class, once the program has run
        for number, test in enumerate(_steps(link, tests, defined), 1):
            link.deadline = time.monotonic() + seconds
            if not test():
                return f"test {number}: wrong answer"
            if link.failure:  # which a bare `except` of the test has taken for an error
                raise link.failure
    except LateError:
        return f"test {number}: timeout"
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
