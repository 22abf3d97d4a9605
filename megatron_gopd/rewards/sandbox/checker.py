"""Holds the tests and calls the answer's functions, which live in another process of the sandbox."""

from __future__ import annotations

import builtins
import io
import json
import os
import pickle
import select
import struct
import sys
import time

from megatron_gopd.rewards.sandbox.programs import Outcome
from megatron_gopd.rewards.tests import Calls, Tests, same_value

REQUESTS, REPLIES, VERDICT = 3, 4, 1  # descriptors
MAX_REPLY = 1 << 28  # bytes
SAFE = {
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


class EndedError(Exception):
    """The program's process ended, or sent what is no reply."""


class Remote:
    """An object of the program that is no plain value; equal to nothing here."""

    def __init__(self, link: Link, number: int):
        self._link, self._number = link, number

    def __getattr__(self, name: str):
        return lambda *args, **kwargs: self._link.call((self._number, name), args, kwargs)


class Link:
    """Calls into the program; `deadline` bounds the wait for a reply."""

    def __init__(self) -> None:
        self.deadline = 0.0

    def call(self, target, args: tuple, kwargs: dict):
        buffer = io.BytesIO()
        _Pickler(buffer, protocol=4).dump((target, args, kwargs))
        self._write(buffer.getvalue())
        return self.reply()

    def reply(self):
        """Raises what the call raised, TimeoutError or EndedError."""
        (size,) = struct.unpack("<Q", self._read(8))
        if size > MAX_REPLY:
            raise EndedError("a reply of more than 256 MiB")
        unpickler = _Unpickler(io.BytesIO(self._read(size)))
        unpickler.link = self
        kind, *value = unpickler.load()
        if kind == "value":
            return value[0]
        name, text = value
        known = getattr(builtins, str(name), None)
        is_error = isinstance(known, type) and issubclass(known, Exception)
        raise known(text) if is_error else RuntimeError(f"{name}: {text}")

    def _write(self, data: bytes) -> None:
        os.set_blocking(REQUESTS, False)
        view = memoryview(data)
        while view:
            self._wait(REQUESTS, select.POLLOUT)
            try:
                view = view[os.write(REQUESTS, view) :]
            except BrokenPipeError:
                raise EndedError("the program ended early") from None

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            self._wait(REPLIES, select.POLLIN)
            chunk = os.read(REPLIES, min(size - len(data), 1 << 20))
            if not chunk:
                raise EndedError("the program ended early")
            data += chunk
        return bytes(data)

    def _wait(self, descriptor: int, event: int) -> None:
        poll = select.poll()
        poll.register(descriptor, event)
        if not poll.poll(max(0.0, self.deadline - time.monotonic()) * 1000):
            raise TimeoutError


class _Pickler(pickle.Pickler):
    def persistent_id(self, value):
        return value._number if isinstance(value, Remote) else None


class _Unpickler(pickle.Unpickler):
    """A reply comes from a program that may be hostile: it may name plain types only."""

    link: Link

    def find_class(self, module: str, name: str):
        if name in SAFE.get(module, "").split():
            return super().find_class(module, name)
        raise EndedError(f"a reply that names {module}.{name}"[:100])

    def persistent_load(self, number):
        return Remote(self.link, number)


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
        names = link.reply()  # of what the program defines, once it has run
        for number, test in enumerate(_steps(link, tests, names), 1):
            link.deadline = time.monotonic() + seconds
            if not test():
                return f"test {number}: wrong answer"
    except TimeoutError:
        return f"test {number}: timeout"
    except AssertionError as error:
        return f"test {number}: wrong answer {error}".rstrip()[:200]
    except BaseException as error:  # noqa: BLE001  from the program, or a test that cannot work with what it returns
        return f"test {number}: {type(error).__name__}: {error}"[:200]
    return None


def _steps(link: Link, tests: Tests, names: list[str]):
    """One function a test: true, or wrong, or it raises."""
    if isinstance(tests, Calls):
        for args, expected in tests.cases:
            yield lambda args=args, expected=expected: same_value(link.call(tests.function, args, {}), expected)
        return
    namespace = {"__name__": "tests"} | {name: _function(link, name) for name in map(str, names)}
    for block in tests.blocks:
        yield lambda block=block: exec(compile(block, "tests", "exec"), namespace) is None


def _function(link: Link, name: str):
    return lambda *args, **kwargs: link.call(name, args, kwargs)
