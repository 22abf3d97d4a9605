"""What every algorithm says of itself. Other rooms ask these, and none asks for a type."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from megatron_gopd.config.section import Section

if TYPE_CHECKING:
    from megatron_gopd.config.models import Scorer
    from megatron_gopd.config.schema import Config

Aggregation = Annotated[
    Literal["sequence_mean", "token_mean"],
    Field(
        description="how tokens become one loss: a mean over sequences of token means, or a mean over all tokens; "
        "over the whole batch, however it is cut"
    ),
]


class AlgorithmSection(Section):
    """The keys of an algorithm are its fields; this is the rest of its entry in the table."""

    LOOP: ClassVar[str]  # MODULE:FUNCTION, called with the configuration
    LOSS: ClassVar[str]  # MODULE:FUNCTION, called with loss_settings: builds what the loop hands to the student
    SCORERS: ClassVar[str] = "megatron_gopd.policies.scorers:Scorers"  # called with the configuration
    READS: ClassVar[Literal["log-probs", "hidden states", "top log-probs"]] = "log-probs"  # of scorers
    KIND: ClassVar[str]  # of methods that a report compares with each other
    TEACHERS: ClassVar[Literal["needed", "allowed", "refused"]] = "needed"
    WHY_TEACHERS: ClassVar[str] = ""  # they are needed or refused
    SAMPLES_STUDENT: ClassVar[bool] = True  # False: it imitates what teachers, or the data, wrote
    REFERENCE_OF_EACH_TEACHER: ClassVar[bool] = False
    USUAL: ClassVar[dict[str, dict]] = {}  # what the paper trains it with, where that is not what every one starts from

    @property
    def loss_settings(self) -> dict[str, Any]:
        return {}

    @property
    def rewards_for(self) -> str | None:
        """Who learns from rewards, as an error names it; None: nobody."""
        return None

    @property
    def updates(self) -> int:
        """Optimizer steps a batch."""
        return 1

    @property
    def strength(self) -> float:
        """Of its method, for the report: lambda."""
        return 1.0

    def try_out(self, config: Config) -> None:
        """Raises UserError: the loss is the user's own, and does not work."""

    def scorers(self, config: Config) -> dict[str, Scorer]:
        """{who it is: settings} of every frozen model that scores what the student samples."""
        return {}
