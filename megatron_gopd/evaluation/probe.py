"""How far the student is from its teacher on held-out prompts: measured before and after a run, exactly."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from megatron_gopd.config import Config, schema
from megatron_gopd.data import Tokenizers, Trajectory, build_prompts
from megatron_gopd.data.packing import Row
from megatron_gopd.evaluation.statistics import Estimate
from megatron_gopd.policies import scoring
from megatron_gopd.policies.scorers import Scorers
from megatron_gopd.policies.student import Student
from megatron_gopd.rollout import EmbeddedEngine

GREEDY_ANSWERS = 2


@dataclass
class Measurement:
    """One value a held-out prompt for each quantity, so that two measurements can be paired."""

    reverse_kl_fixed: list[float] = field(default_factory=list)
    """exact KL(pi_theta || pi*) over the vocabulary, token mean, on the INITIAL student's continuations; nats"""
    reverse_kl_fresh: list[float] = field(default_factory=list)
    """the same on continuations sampled now"""
    reverse_kl_response: list[float] = field(default_factory=list)
    """its sum over a fresh continuation: nats a response"""
    entropy: list[float] = field(default_factory=list)
    """of the student, token mean on the fresh continuations; nats"""
    teacher_nll: list[float] = field(default_factory=list)
    """the student's, token mean on continuations the teacher wrote; nats"""
    response_tokens: list[float] = field(default_factory=list)
    finished: list[float] = field(default_factory=list)
    """1 where the fresh continuation ended by itself"""
    teacher: dict[str, list[float]] = field(default_factory=dict)
    """the same quantities of what the teacher writes, where they mean something"""
    greedy: list[dict] = field(default_factory=list)
    """the most likely answers to the first prompts, in words"""


class Probe:
    """Measures a student in training. Every method is collective over all ranks."""

    def __init__(self, config: Config, tokenizers: Tokenizers, student: Student, scorers: Scorers):
        settings = config.evaluation
        self.prompts = build_prompts(config, tokenizers, held_out=True).prompts[: settings.limit]
        self.config, self.student, self.scorers = config, student, scorers
        self.tokenizer = tokenizers.student
        self._fixed: list[Trajectory] | None = None
        self._from_teacher: list[Trajectory] | None = None

    def measure(self, engine: EmbeddedEngine) -> Measurement:
        """Measure the student as it is; `engine` holds its weights. The first call sets the fixed continuations."""
        fresh = self._sample(engine)
        if self._fixed is None:
            self._fixed, self._from_teacher = fresh, self._teacher_continuations()
        kl_fresh, entropy = self._divergence(fresh)
        kl_fixed = kl_fresh if fresh is self._fixed else self._divergence(self._fixed)[0]
        return Measurement(
            reverse_kl_fixed=kl_fixed,
            reverse_kl_fresh=kl_fresh,
            reverse_kl_response=[kl * len(trajectory) for kl, trajectory in zip(kl_fresh, fresh, strict=True)],
            entropy=entropy,
            teacher_nll=self._teacher_nll(),
            response_tokens=[float(len(trajectory)) for trajectory in fresh],
            finished=_finished(fresh),
            teacher=self._of_teacher(),
            greedy=self._greedy(engine),
        )

    def _sample(self, engine: EmbeddedEngine) -> list[Trajectory]:
        """One continuation a prompt; the random numbers are the same at every call, so answers pair."""
        limit = self.config.evaluation.max_response_tokens
        chunks = engine.generate(self.prompts, step=0, samples=1, max_tokens=limit)
        return [trajectory for chunk in chunks for trajectory in chunk]

    def _divergence(self, trajectories: list[Trajectory]) -> tuple[list[float], list[float]]:
        """Exact KL(pi_theta || pi*) and the student's entropy, token means of each trajectory."""
        temperature = self.config.rollout.temperature
        divergences, entropies = [], []
        for trajectory in trajectories:
            prompt, response = trajectory.prompt, trajectory.response_tokens
            ours = scoring.distribution(
                self.student.model, Row(prompt.student_tokens, response), temperature=temperature
            )
            with self.scorers.teacher(prompt.teacher) as teacher:
                theirs = scoring.distribution(teacher, Row(prompt.teacher_tokens, response), temperature=temperature)
            shared = min(ours.shape[1], theirs.shape[1])  # embeddings may be padded to different sizes
            p = ours[:, :shared].exp()
            divergences.append((p * (ours[:, :shared] - theirs[:, :shared])).sum(1).mean().item())
            entropies.append(-(p * ours[:, :shared]).sum(1).mean().item())
        return divergences, entropies

    def _teacher_nll(self) -> list[float]:
        rows = [Row(each.prompt.student_tokens, each.response_tokens) for each in self._from_teacher]
        logprobs, _ = self._score(self.student.model, rows)
        return [-_mean(values) for values in logprobs]

    def _of_teacher(self) -> dict[str, list[float]]:
        """NLL, entropy, length and share finished of the teacher's continuations, under the teacher itself."""
        values: dict[str, tuple[float, float]] = {}
        for name in self.config.teachers:
            written = [each for each in self._from_teacher if each.prompt.teacher == name]
            if written:
                rows = [Row(each.prompt.teacher_tokens, each.response_tokens) for each in written]
                with self.scorers.teacher(name) as teacher:
                    scores = self._score(teacher, rows)
                for each, logprobs, entropy in zip(written, *scores, strict=True):
                    values[each.prompt.id] = -_mean(logprobs), _mean(entropy)
        return {
            "teacher_nll": [values[each.prompt.id][0] for each in self._from_teacher],
            "entropy": [values[each.prompt.id][1] for each in self._from_teacher],
            "response_tokens": [float(len(each)) for each in self._from_teacher],
            "finished": _finished(self._from_teacher),
        }

    def _score(self, model, rows: list[Row]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        budget = self.config.training.max_tokens_per_micro_batch
        return scoring.score(model, rows, temperature=self.config.rollout.temperature, max_tokens=budget)

    def _teacher_continuations(self) -> list[Trajectory]:
        """What each prompt's teacher writes after ITS prompt; the teacher is loaded for decoding, then dropped."""
        written: dict[str, Trajectory] = {}
        for name, teacher in self.config.teachers.items():
            asked = [prompt for prompt in self.prompts if prompt.teacher == name]
            if asked:
                engine = self._engine_of(teacher)
                as_student = [replace(prompt, student_tokens=prompt.teacher_tokens) for prompt in asked]
                for chunk in engine.generate(as_student, step=0):
                    written |= {each.prompt.id: each for each in chunk}
        return [replace(written[prompt.id], prompt=prompt) for prompt in self.prompts]

    def _engine_of(self, teacher: schema.Teacher) -> EmbeddedEngine:
        return EmbeddedEngine(
            teacher.model,
            dtype=teacher.dtype,
            max_response_tokens=self.config.evaluation.max_response_tokens,
            temperature=self.config.rollout.temperature,
            seed=self.config.run.seed,
        )

    def _greedy(self, engine: EmbeddedEngine) -> list[dict]:
        asked = self.prompts[:GREEDY_ANSWERS]
        limit = self.config.evaluation.max_response_tokens
        answers = engine.decode([prompt.student_tokens for prompt in asked], limit)
        return [
            {"prompt": prompt.messages[-1]["content"], "answer": self.tokenizer.decode(answer.tokens)}
            for prompt, answer in zip(asked, answers, strict=True)
        ]


QUANTITIES = {  # Measurement field -> how a reader calls it
    "reverse_kl_fixed": "reverse KL, fixed continuations (nats/token)",
    "reverse_kl_fresh": "reverse KL, fresh continuations (nats/token)",
    "reverse_kl_response": "reverse KL, fresh continuations (nats/response)",
    "teacher_nll": "NLL of the teacher's continuations (nats/token)",
    "entropy": "entropy (nats/token)",
    "response_tokens": "response length (tokens)",
    "finished": "share finished",
}


def compare(before: Measurement, after: Measurement) -> list[tuple[str, Estimate, Estimate, Estimate, Estimate | None]]:
    """(quantity, before, after, paired difference, the teacher's own) for every quantity."""
    return [
        (
            name,
            Estimate.of(getattr(before, key)),
            Estimate.of(getattr(after, key)),
            Estimate.of_difference(getattr(after, key), getattr(before, key)),
            Estimate.of(before.teacher[key]) if key in before.teacher else None,
        )
        for key, name in QUANTITIES.items()
    ]


def _finished(trajectories: list[Trajectory]) -> list[float]:
    return [float(trajectory.finish_reason == "stop") for trajectory in trajectories]


def _mean(values: np.ndarray) -> float:
    return float(values.mean(dtype=np.float64))
