"""How one model is spread over ranks."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field, field_validator

from megatron_gopd.errors import UserError


class Layout(BaseModel):
    """Sizes of the parallel dimensions of one model; data parallelism takes the ranks that are left."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tp: int = Field(1, ge=1, description="tensor parallelism")
    pp: int = Field(1, ge=1, description="pipeline parallelism")
    cp: int = Field(1, ge=1, description="context parallelism")
    ep: int = Field(1, ge=1, description="expert parallelism")
    etp: int = Field(1, ge=1, description="tensor parallelism of the experts")
    sequence_parallel: bool = Field(False, description="shard activations along the sequence (tp > 1)")
    ranks: tuple[int, int] | None = Field(None, description="first and last rank of the model; null: all")

    @field_validator("tp", "pp", "cp", "ep", "etp", mode="before")
    @classmethod
    def _a_number(cls, given):
        if isinstance(given, bool):
            raise ValueError("a number of ranks, as in 2")
        return given

    @field_validator("ranks", mode="before")
    @classmethod
    def _first_and_last(cls, given):
        try:
            first, last = (0, 0) if given is None else map(int, [given] if isinstance(given, str) else given)
        except (TypeError, ValueError):
            raise ValueError("write the first and the last rank: [0, 3], or ranks=0-3 in --layout") from None
        if not 0 <= first <= last:
            raise ValueError("the first rank comes first, and ranks count from 0: [0, 3], or ranks=0-3 in --layout")
        return given

    @classmethod
    def parse(cls, text: str) -> Layout:
        """`tp=2,sequence_parallel=true` -> Layout; omitted keys are 1 / false."""
        fields = {}
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            key, equals, value = (piece.strip() for piece in part.partition("="))
            if key not in cls.model_fields or not equals:
                raise UserError(
                    f"--layout: cannot read {part!r}; write key=value with the keys "
                    f"{', '.join(cls.model_fields)}, as in tp=2,sequence_parallel=true,ranks=0-3"
                )
            if key in fields:
                raise UserError(f"--layout: the key {key!r} stands in {text!r} twice")
            fields[key] = value.split("-") if key == "ranks" else value
        try:
            return cls(**fields)
        except ValueError as error:
            problems = "; ".join(map(_in_words, error.errors()))
            raise UserError(f"--layout: {problems}") from None

    def span(self, world: int, owner: str) -> range:
        """The ranks that hold the model, of the `world` ranks of the job; refuses a layout that does not fit them."""
        first, last = self.ranks or (0, world - 1)
        if not 0 <= first <= last < world:
            raise UserError(
                f"{owner}: layout.ranks [{first}, {last}] does not lie within the {world} rank(s) of this job, "
                f"0 to {world - 1}"
            )
        ranks = last - first + 1
        for what, sizes in {
            "": {"tp": self.tp, "pp": self.pp, "cp": self.cp},
            " of the experts": {"etp": self.etp, "ep": self.ep, "pp": self.pp},
        }.items():
            replica = math.prod(sizes.values())
            if ranks % replica:
                product = " x ".join(f"{name} {size}" for name, size in sizes.items())
                raise UserError(
                    f"{owner}: {product} = {replica} rank(s) a replica{what}, which does not divide the {ranks} "
                    f"rank(s) it is given; change the layout or the number of ranks"
                )
        return range(first, last + 1)


def _in_words(problem: dict) -> str:
    given = problem["input"]
    given = "-".join(given) if isinstance(given, list) else given
    return f"{problem['loc'][0]}={given}: {problem['msg'].removeprefix('Value error, ')}"
