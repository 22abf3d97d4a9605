"""What a run is refused for before the first weight is read.

train asks on its ranks, doctor on every node, submit where a job is submitted, which leaves out what only the machine
that computes can tell (the functions that end in _here). Nothing here is collective.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from megatron_gopd.config import Config
from megatron_gopd.config.models import Model
from megatron_gopd.data import PromptLoader, PromptSet, Tokenizers, build_prompts, load_tokenizers, stop_ids
from megatron_gopd.data.rows import errors_at
from megatron_gopd.mcore.architecture import Architecture
from megatron_gopd.mcore.front_door import open_weights
from megatron_gopd.mcore.model import check_cut, check_precision_here
from megatron_gopd.mcore.routing_replay import check_replay
from megatron_gopd.mcore.row_length import check_context
from megatron_gopd.rewards import check_machine, check_rows


def check_models(config: Config, world: int) -> None:
    """Architectures, layouts on `world` ranks and files of every model; how far the student can read.

    Raises:
        UserError: names the first that cannot be.
    """
    for role, settings, where in _models(config):
        with errors_at(role):
            architecture = Architecture.read(settings.model)
        check_cut(architecture, settings.layout, settings.dtype, settings.fp8, where)
        settings.layout.span(world, role)
        with errors_at(role):
            open_weights(settings.model)
    check_context(config)
    check_replay(config)


def check_models_here(config: Config) -> None:
    """Raises UserError: a precision that this machine cannot compute in."""
    for _, settings, where in _models(config):
        check_precision_here(settings.dtype, settings.fp8, where)


def check_tokenizers(config: Config) -> Tokenizers:
    """Of every model, with the ids that end a response. Raises UserError: the first that is unfit."""
    tokenizers = load_tokenizers(config)
    stop_ids(config.student.model, tokenizers.student)
    for name, tokenizer in tokenizers.teachers.items():
        stop_ids(config.teachers[name].model, tokenizer)
    return tokenizers


def read_prompts(config: Config, tokenizers: Tokenizers) -> tuple[PromptSet, PromptLoader]:
    """The prompts of data.train, and their batches. Raises UserError: a row that is unfit, or fewer than a batch."""
    prompts = build_prompts(config, tokenizers)
    return prompts, PromptLoader(prompts.prompts, config.data.batch_size, config.run.seed)


def read_held_out(config: Config, tokenizers: Tokenizers) -> PromptSet | None:
    """The prompts of evaluation.prompts. Raises UserError: a row that is unfit."""
    asked = config.evaluation and config.evaluation.prompts
    return build_prompts(config, tokenizers, held_out=True) if asked else None


def check_rewards(config: Config, prompts: PromptSet) -> Counter[str | None]:
    """How many prompts each grader gets; nothing where nothing is graded. Raises UserError: see check_rows."""
    if not config.algorithm.SAMPLES_STUDENT:
        return Counter()
    return check_rows(config.rewards, prompts.prompts, config.sandbox, every=config.needs_rewards)


def check_rewards_here(config: Config, graders: Counter[str | None]) -> None:
    """Raises UserError: this machine has no safe place for programs, or cannot load a function of the user's own."""
    if config.algorithm.SAMPLES_STUDENT:
        check_machine({config.rewards, *graders}, config.sandbox)


def _models(config: Config) -> Iterator[tuple[str, Model, str]]:
    """(role, settings, how a message names it) of every model."""
    for role, settings in {"student": config.student, **config.scorers()}.items():
        yield role, settings, f"{role} ({settings.model})"
