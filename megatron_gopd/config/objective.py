"""An objective of the user's own: `algorithm.type: FILE.py:FUNCTION`, and its keys, a class beside the function."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import ConfigDict, Field, ValidationError, ValidationInfo
from pydantic_core import PydanticCustomError

from megatron_gopd.config.algorithm import Aggregation, AlgorithmSection
from megatron_gopd.config.models import Scorer
from megatron_gopd.config.own_code import OwnCode
from megatron_gopd.errors import UserError

if TYPE_CHECKING:
    from megatron_gopd.config.schema import Config

COLUMNS = ("teacher_logprobs", "reference_logprobs", "outcome")  # of objective.TokenRows, that somebody is asked for
AS_WRITTEN = {"own code": "not run"}  # a pydantic context: of the configuration of a run that is only looked at


class Objective(AlgorithmSection):
    """An objective of your own (docs/extending.md): these keys, and those that the class beside its function adds.

    Derive that class from this one, and annotate the function's parameter with it. NEEDS names the columns of `rows`
    that the loss reads; models and rewards are asked for these and no others. To add to a built-in algorithm, derive
    from its class instead (Gopd, Grpo): its keys, its loop and what it needs are there.
    """

    LOOP = "megatron_gopd.training.distill:distill"
    LOSS = "megatron_gopd.objective.own:own_loss"
    KIND = "own"
    WHY_TEACHERS = "the objective reads teacher_logprobs: name one, teachers.NAME.model"
    NEEDS: ClassVar[tuple[str, ...]] = ("teacher_logprobs",)

    type: str = Field(description="FILE.py:FUNCTION, which builds the loss")
    reference: Scorer | None = Field(None, description="of reference_logprobs; null: the student's start")
    loss_aggregation: Aggregation = "sequence_mean"

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        if "teacher_logprobs" not in cls.NEEDS:
            cls.TEACHERS = "refused"
            cls.WHY_TEACHERS = (
                "teachers: NEEDS of the objective name no teacher_logprobs, so nobody asks them: leave them out"
            )

    @property
    def rewards_for(self) -> str | None:
        return f"algorithm.type {self.type}" if "outcome" in self.NEEDS else None

    def scorers(self, config: Config) -> dict[str, Scorer]:
        asked = config.named_teachers() if "teacher_logprobs" in self.NEEDS else {}
        if "reference_logprobs" in self.NEEDS:
            asked = asked | {"the reference": self.reference or config.initial_student()}
        return asked


class AsWritten(AlgorithmSection):
    """The keys of an objective whose file is not read: as they stand."""

    model_config = ConfigDict(extra="allow")
    KIND = "own"
    TEACHERS = "allowed"

    type: str


@functools.cache
def own_section(code: OwnCode) -> type[AlgorithmSection]:
    """The class of the objective's keys. Raises UserError: no such file, or nothing in it that is an objective."""
    build = code.load()
    keys = _annotated(code, build)

    class Own(keys):
        __doc__ = keys.__doc__
        LOSS = Objective.LOSS
        KIND = "own"

        type: str

        @property
        def loss_settings(self) -> dict[str, Any]:
            return {"code": code, "keys": self}

        def try_out(self, config: Config) -> None:
            columns = {"teacher_logprobs": "teachers.", "reference_logprobs": "the reference"}
            read = {name for name, who in columns.items() if any(who in each for each in config.scorers())}
            read |= {"outcome"} if self.rewards_for else set()
            read |= {"old_logprobs"} if self.updates > 1 else set()
            resolve_name("megatron_gopd.objective.own:try_out")(code, self, read)

        def __reduce__(self) -> tuple:
            return _unpickled, (code, self.model_dump(mode="json", by_alias=True))

    Own.__name__ = Own.__qualname__ = keys.__name__
    return Own


def _unpickled(code: OwnCode, keys: dict[str, Any]) -> AlgorithmSection:
    """The section in another process or rank, which reads the file itself."""
    return own_section(code).model_validate(keys)


def read_own(value: Any, _: Callable, info: ValidationInfo) -> AlgorithmSection:
    """What takes the place of pydantic's validator: the class is known only when `type` is."""
    if isinstance(value, AlgorithmSection):
        return value
    if info.context is AS_WRITTEN:
        return AsWritten.model_validate(value)
    try:
        return _read(OwnCode.parse(value["type"]), value)
    except UserError as error:
        raise PydanticCustomError("algorithm", "{said}", {"said": str(error)}) from error


def _read(code: OwnCode, value: dict) -> AlgorithmSection:
    section = own_section(code)
    try:
        return section.model_validate(value)
    except ValidationError:  # mistakes in the keys, which pydantic tells
        raise
    except Exception as error:  # of a validator of the class
        raise UserError(code.in_words(error)) from error


def _annotated(code: OwnCode, build: Callable) -> type[AlgorithmSection]:
    """The class that the first parameter of the function, or of the class, is annotated with."""
    with code.errors():
        parameters = list(inspect.signature(build).parameters)
        hints = typing.get_type_hints(build.__init__ if inspect.isclass(build) else build)
    keys = hints.get(parameters[0]) if parameters else Objective
    place = code.place_of(build)
    if not (inspect.isclass(keys) and issubclass(keys, AlgorithmSection)):
        raise UserError(
            f"{place}: {code.name}({parameters[0]}) takes the objective's keys: annotate it with a class derived from "
            f"megatron_gopd.config.Objective, as in docs/extending.md"
        )
    if keys.READS != "log-probs":
        raise UserError(
            f"{place}: {keys.__name__} derives from an algorithm that reads {keys.READS}, and a token loss reads "
            f"log-probs: derive from Objective, Gopd or Grpo"
        )
    unknown = [name for name in getattr(keys, "NEEDS", ()) if name not in COLUMNS]
    if unknown:
        raise UserError(f"{place}: NEEDS of {keys.__name__} names {unknown[0]!r}; it may name {', '.join(COLUMNS)}")
    return keys
