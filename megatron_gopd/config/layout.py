"""How one model is spread over ranks."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

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

    @classmethod
    def parse(cls, text: str) -> Layout:
        """`tp=2,sequence_parallel=true` -> Layout; omitted keys are 1 / false."""
        fields = {}
        for part in filter(None, (piece.strip() for piece in text.split(","))):
            key, equals, value = part.partition("=")
            if key not in cls.model_fields or not equals:
                raise UserError(
                    f"--layout: cannot read {part!r}; write key=value with the keys "
                    f"{', '.join(cls.model_fields)}, as in tp=2,sequence_parallel=true"
                )
            if key in fields:
                raise UserError(f"--layout: the key {key!r} stands in {text!r} twice")
            fields[key] = value
        try:
            return cls(**fields)
        except ValueError as error:
            problems = "; ".join(f"{e['loc'][0]}={e['input']}: {e['msg']}" for e in error.errors())
            raise UserError(f"--layout: {problems}") from None

    def data_parallel(self, ranks: int, owner: str) -> int:
        """Replicas of the model on `ranks` ranks; refuses a layout that does not fit."""
        per_replica = self.tp * self.pp * self.cp
        if ranks % per_replica:
            raise UserError(
                f"{owner}: tp {self.tp} x pp {self.pp} x cp {self.cp} = {per_replica} ranks a replica, "
                f"which does not divide the {ranks} rank(s) of this job; change the layout or the number of ranks"
            )
        return ranks // per_replica
