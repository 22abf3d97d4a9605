"""Code of the user's own, named in a configuration as FILE.py:NAME: loaded, and blamed by its line when it fails."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from megatron_gopd.errors import UserError

OWN_CODE = re.compile(r".+\.py:[A-Za-z_]\w*")


@dataclass(frozen=True)
class OwnCode:
    """A function or a class in a file. A relative path starts where the command was started, as of models and data."""

    file: str
    name: str

    @classmethod
    def parse(cls, text: object) -> OwnCode | None:
        """None where `text` is not FILE.py:NAME. ~ is the user's home."""
        if not (isinstance(text, str) and OWN_CODE.fullmatch(text)):
            return None
        file, _, name = os.path.expanduser(text).rpartition(":")
        return cls(file, name)

    def __str__(self) -> str:
        return f"{self.file}:{self.name}"

    @property
    def path(self) -> Path:
        return Path(self.file).absolute()

    def load(self) -> Callable:
        """What it names; the file is run once a process. Raises UserError: no such file or name, or it fails."""
        if not self.path.is_file():
            raise UserError(f"{self.file}: no such file")
        with self.errors(f"{self.file} cannot be imported: "):
            self.digest()
            module = _module(self.path)
        if not callable(getattr(module, self.name, None)):
            raise UserError(f"{self.file} defines no function {self.name}")
        return getattr(module, self.name)

    @contextlib.contextmanager
    def errors(self, what: str = "") -> Iterator[None]:
        """Whatever the file raises within the block is the user's to mend: -> UserError, `what` in front of it."""
        try:
            yield
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise UserError(f"{what}{self.in_words(error)}") from error

    def in_words(self, error: BaseException) -> str:
        """FILE:LINE: TypeError: what it says (the line), of the last line of this file that the error came through."""
        said = f"{type(error).__name__}: {error}"
        if isinstance(error, SyntaxError) and error.filename == str(self.path):
            return f"{self.file}:{error.lineno}: {type(error).__name__}: {error.msg}"
        frames = self._frames(error)
        return f"{self.file}:{frames[-1].lineno}: {said} (in: {frames[-1].line})" if frames else f"{self.file}: {said}"

    def is_in(self, error: BaseException) -> bool:
        """Whether the error came through this file."""
        return bool(self._frames(error))

    def _frames(self, error: BaseException) -> list[traceback.FrameSummary]:
        return [each for each in traceback.extract_tb(error.__traceback__) if each.filename == str(self.path)]

    def place_of(self, function: Callable) -> str:
        """FILE:LINE where a function of the file begins; FILE for what has no code of its own."""
        function = inspect.unwrap(function)
        code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
        here = code is not None and code.co_filename == str(self.path)
        return f"{self.file}:{code.co_firstlineno}" if here else self.file

    def digest(self) -> str:
        """SHA-256 of the file, not of what it imports, as it was when it was loaded."""
        return _digest(self.path)


@dataclass(frozen=True)
class OneOf:
    """Of a text in the schema: one of `names`, or FILE.py:NAME of a `what` of the user's own."""

    names: tuple[str, ...]
    what: str  # reward, engine, scorer
    kind: str  # of what NAME is: FUNCTION or CLASS

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, value: str) -> str:
        if value not in self.names and not OwnCode.parse(value):
            raise ValueError(f"write {', '.join(self.names)}, or FILE.py:{self.kind} for a {self.what} of your own")
        return os.path.expanduser(value)


@functools.cache
def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@functools.cache
def _module(path: Path) -> ModuleType:
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # it may import its neighbours; at the end: it hides no package
    name = f"_own_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # there, annotations of its classes are read
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
