"""Set-ups that could not work or could not learn, refused as a whole. A message starts with the key it is about."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from megatron_gopd.config.models import WHOLE_STATES
from megatron_gopd.errors import UserError

if TYPE_CHECKING:
    from megatron_gopd.config.models import Model
    from megatron_gopd.config.schema import Config

SAME_PROMPT = ("student_tokens", "own_template")  # of a teacher in the student's folder: one folder has one template
FILES_OF_PROBLEMS = (".jsonl", ".jsonl.gz", ".parquet")


def somebody_teaches(config: Config) -> None:
    algorithm = config.algorithm
    if algorithm.TEACHERS == "needed" and not config.teachers:
        raise ValueError(f"teachers is empty: {algorithm.WHY_TEACHERS}")
    if algorithm.TEACHERS == "refused" and config.teachers:
        raise ValueError(algorithm.WHY_TEACHERS)
    if not config.teachers and config.data.balance == "equal":
        raise ValueError("data.balance: equal is a matter of teachers, and there are none: leave it out")


def every_teacher_teaches(config: Config) -> None:
    for name, teacher in config.teachers.items():
        if reads_as_the_student(config, name) and _same_folder(teacher, config.student):
            samples = config.algorithm.SAMPLES_STUDENT
            nothing = "every advantage would be 0" if samples else "it knows all of it already"
            raise ValueError(
                f"teachers.{name} is the student's own initial model reading the same prompt: {nothing}. "
                f"Give teachers.{name}.prompt a suffix, a column or a context, name another model, or extrapolate from "
                f"another reference"
            )
        if teacher.prompt not in SAME_PROMPT or not config.extrapolates(name):
            continue
        if _same_folder(teacher, config.reference_of(name)):
            raise ValueError(
                f"teachers.{name} and its reference are the same model, so lambda has nothing to scale. "
                f"Name another reference, or set algorithm.lambda to 1"
            )


def reads_as_the_student(config: Config, teacher: str, *, same_prompt: bool = True) -> bool:
    """Whether a teacher with the student's weights would say what the student says: it reads the same prompt, and no
    reference stands between them. `same_prompt`: the templates of both are the same."""
    prompt = config.teachers[teacher].prompt
    if prompt not in SAME_PROMPT or (prompt == "own_template" and not same_prompt):
        return False
    return not config.extrapolates(teacher) or _same_folder(config.student, config.reference_of(teacher))


def lambda_is_of_a_distillation(config: Config) -> None:
    for name, teacher in config.teachers.items():
        if teacher.lambda_ is not None and not config.algorithm.REFERENCE_OF_EACH_TEACHER:
            raise ValueError(
                f"teachers.{name}.lambda weighs a reference, and algorithm.type: {config.algorithm.type} asks none: "
                f"leave it out"
            )


def lambda_has_what_is_clamped(config: Config) -> None:
    if getattr(config.algorithm, "clamp", None) is not None and not config.extrapolates():
        raise ValueError("algorithm.clamp bounds the term of lambda - 1, which is 0: leave it out, or set lambda")


def rewards_tell_responses_apart(config: Config) -> None:
    asks = config.algorithm.rewards_for
    if asks is None:
        return
    if config.rewards == "none":
        raise ValueError(f"rewards is none, but {asks} learns from them: exact, math, code, auto or FILE.py:FUNCTION")
    if config.rollout.samples_per_prompt < 2:
        raise ValueError(
            f"rollout.samples_per_prompt is 1, but {asks} compares the responses to one prompt: sample 2 or more"
        )


def mini_batches_are_equal(config: Config) -> None:
    parts = config.algorithm.updates
    if config.data.batch_size % parts:
        raise ValueError(
            f"algorithm.mini_batches ({parts}) must divide the prompts of a step, data.batch_size "
            f"({config.data.batch_size})"
        )


def somebody_writes_what_is_imitated(config: Config) -> None:
    if config.algorithm.SAMPLES_STUDENT:
        return
    served = [name for name, teacher in config.teachers.items() if teacher.engine not in ("megatron", "sglang")]
    if served:
        engine = config.teachers[served[0]].engine
        raise ValueError(f"teachers.{served[0]}.engine: {engine} only scores, and SFT has teachers write: use sglang")
    if not config.teachers and config.rollout.samples_per_prompt > 1:
        raise ValueError("rollout.samples_per_prompt: a row of data has one response; leave it out, or name teachers")


def what_runs_ahead_is_the_students(config: Config) -> None:
    rollout = config.rollout
    if rollout.max_staleness and not config.algorithm.SAMPLES_STUDENT:
        raise ValueError(
            f"rollout.max_staleness is of responses that the student samples, and algorithm.type: "
            f"{config.algorithm.type} learns what others wrote, which grows no older: leave it out"
        )
    if rollout.order_window is not None and rollout.order_window < config.data.batch_size:
        raise ValueError(
            f"rollout.order_window is {rollout.order_window}, less than a batch, data.batch_size "
            f"({config.data.batch_size}), whose order does not matter: write as many or more, or leave it out"
        )


def replayed_routes_are_the_students(config: Config) -> None:
    if config.rollout.replay_routing and not config.algorithm.SAMPLES_STUDENT:
        raise ValueError("rollout.replay_routing is of what the student samples, and in SFT others write: leave it out")


def fp8_scales_are_learned_where_it_trains(config: Config) -> None:
    """Transformer Engine updates the scales of delayed scaling in training steps only: a frozen model's stay 1."""
    for who, scorer in config.scorers().items():
        if scorer.fp8 and scorer.fp8.recipe == "delayed" and scorer.engine == "megatron":
            raise ValueError(
                f"fp8.recipe: delayed finds its scales in training steps, and {who} has none: choose tensorwise or "
                f"blockwise for it (a reference that is the student's start takes the student's settings: name one, "
                f"algorithm.reference, with its own)"
            )


def fp8_weights_have_masters_to_follow(config: Config) -> None:
    fp8 = config.student.fp8
    if not (fp8 and fp8.weights):
        return
    if config.optimizer.type != "adam":
        raise ValueError("student.fp8.weights goes with optimizer.type: adam, whose float32 masters they follow")
    if fp8.recipe == "mxfp8":
        raise ValueError(
            "student.fp8.weights does not go with recipe: mxfp8, whose weights cannot be gathered in place: leave "
            "weights out, or choose blockwise"
        )


def hidden_states_can_be_had(config: Config) -> None:
    if config.algorithm.READS != "hidden states":
        return
    for who, scorer in config.scorers().items():
        if scorer.engine not in ("megatron", "served", "sglang"):
            raise ValueError(
                f"algorithm.gradient is exact, which reads hidden states, and {who}.engine is {scorer.engine}: set "
                f"engine: megatron, or served, of a megatron-gopd serve-scorer; or algorithm.gradient: top_k"
            )
        given = scorer.server.flags if scorer.engine == "sglang" else {}
        for flag, wanted in WHOLE_STATES.items():
            if given.get(flag, wanted) != wanted:
                raise ValueError(
                    f"{who}.server.options has {flag}: {given[flag]}, with which SGLang gives no hidden states of "
                    f"whole rows, which algorithm.gradient: exact reads: leave it out, the run sets what it needs"
                )
        if scorer.dtype == "float32" and config.student.dtype == "bfloat16":
            raise ValueError(
                f"{who}.dtype is float32 and student.dtype bfloat16, in which algorithm.gradient: exact multiplies "
                f"hidden states by heads: give both the same dtype"
            )


def top_logprobs_can_be_had(config: Config) -> None:
    if config.algorithm.READS != "top log-probs":
        return
    teachers = config.named_teachers()
    for who, scorer in config.scorers().items():
        if who in teachers and scorer.engine != "sglang":
            raise ValueError(
                f"algorithm.gradient is top_k, for teachers behind SGLang, and {who}.engine is {scorer.engine}, which "
                f"gives more: set algorithm.gradient to exact"
            )
        if who not in teachers and scorer.engine not in ("megatron", "served"):
            raise ValueError(
                f"algorithm.gradient is top_k and {who} has engine: {scorer.engine}, which gives no log-probs of "
                f"given tokens that are others in every place: set its engine to megatron, or to served, of a "
                f"megatron-gopd serve-scorer"
            )


def servers_score_at_temperature_1(config: Config) -> None:
    if config.algorithm.READS == "hidden states":
        return  # log-probs are made of them here
    served = [who for who, scorer in config.scorers().items() if scorer.engine == "sglang"]
    if served and config.rollout.temperature != 1:
        raise ValueError(
            f"rollout.temperature is {config.rollout.temperature}, but SGLang's log-probs of given tokens are at "
            f"temperature 1 whatever it is told: set rollout.temperature to 1, or engine: megatron for {served[0]}"
        )


def exact_measures_have_a_teacher_here(config: Config) -> None:
    if not (config.evaluation and config.evaluation.prompts):
        return
    if not config.teachers:
        raise ValueError("evaluation.prompts measures the distance from teachers, and there are none: use suites")
    served = [name for name, teacher in config.teachers.items() if teacher.engine != "megatron"]
    if served:
        raise ValueError(
            f"evaluation measures the exact divergence from a teacher in this job, but teachers.{served[0]}.engine "
            f"is {config.teachers[served[0]].engine}: leave evaluation.prompts out, or set that engine to megatron"
        )


def teachers_that_are_examined_answer(config: Config) -> None:
    if not (config.evaluation and config.evaluation.teachers):
        return
    if not (config.teachers and config.evaluation.suites):
        raise ValueError("evaluation.teachers has teachers answer evaluation.suites, and there are none: leave it out")
    served = [name for name, teacher in config.teachers.items() if teacher.engine != "megatron"]
    if served:
        raise ValueError(
            f"evaluation.teachers loads the teachers where it samples, but teachers.{served[0]}.engine is "
            f"{config.teachers[served[0]].engine}: leave it out, and ask that teacher by evaluate --suite"
        )


def files_of_problems_have_a_grader(config: Config) -> None:
    suites = config.evaluation.suites if config.evaluation else []
    files = [name for name in suites if name.endswith(FILES_OF_PROBLEMS)]
    if files and config.rewards == "none":
        raise ValueError(f"evaluation.suites: nothing grades the answers to {files[0]}: set rewards")


def warmup_ends_before_the_run(config: Config) -> None:
    if config.optimizer.warmup_steps >= config.run.steps and config.optimizer.warmup_steps:
        raise ValueError(
            f"optimizer.warmup_steps ({config.optimizer.warmup_steps}) must be below run.steps ({config.run.steps})"
        )


def an_objective_of_ones_own_works(config: Config) -> None:
    try:
        config.algorithm.try_out(config)
    except UserError as error:
        raise ValueError(f"algorithm.type: {error}") from error


def _same_folder(one: Model, other: Model) -> bool:
    """However their paths are written: with a slash at the end, ./ in front, from the root, or through a link."""
    return os.path.realpath(one.model) == os.path.realpath(other.model)


RULES = (
    somebody_teaches,
    every_teacher_teaches,
    lambda_is_of_a_distillation,
    lambda_has_what_is_clamped,
    rewards_tell_responses_apart,
    mini_batches_are_equal,
    somebody_writes_what_is_imitated,
    what_runs_ahead_is_the_students,
    replayed_routes_are_the_students,
    fp8_scales_are_learned_where_it_trains,
    fp8_weights_have_masters_to_follow,
    hidden_states_can_be_had,
    top_logprobs_can_be_had,
    servers_score_at_temperature_1,
    exact_measures_have_a_teacher_here,
    teachers_that_are_examined_answer,
    files_of_problems_have_a_grader,
    warmup_ends_before_the_run,
    an_objective_of_ones_own_works,
)
