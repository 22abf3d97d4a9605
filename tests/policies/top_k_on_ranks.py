"""What a rank of test_top_k does, to whom a stand-in answers; and the same step in plain transformers and torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from megatron_gopd.config import Config, Layout
from megatron_gopd.data.packing import Row
from megatron_gopd.data.trajectory import Trajectory
from megatron_gopd.objective import loss_of
from megatron_gopd.policies.student import Student
from megatron_gopd.policies.top_k_scorers import TopKScorers
from megatron_gopd.servers.top_logprobs import Scored
from tests.policies.exact_on_ranks import batch
from tests.policies.steps_on_ranks import weights_of
from tests.tiny_models import load_plain

LAMBDA, TOP_K = 1.25, 6
JUDGES = {"strong": ("teacher", "past"), "plain": ("other", "student")}  # teacher and reference
Answers = dict[tuple[int, ...], Scored]


def settings(folders: dict[str, Path], *, layout="", scorers="", training=None, far=False, **algorithm) -> Config:
    """Two teachers behind a server: `strong` has a reference of its own, `plain` the student's start.

    far: the first of these is behind our own scorer.
    """

    def served(name: str) -> dict:
        urls = {"urls": [f"http://127.0.0.1:9/{name}"]}
        return {"model": str(folders[name]), "dtype": "float32", "engine": "sglang", "server": urls}

    reference = {"model": str(folders["past"]), "dtype": "float32", "layout": Layout.parse(scorers)}
    reference |= {"engine": "served", "server": {"urls": ["http://127.0.0.1:9/past"]}} if far else {}
    return Config.model_validate(
        {
            "run": {"name": "test", "steps": 10},
            "student": {"model": str(folders["student"]), "layout": Layout.parse(layout), "dtype": "float32"},
            "teachers": {"strong": served("teacher") | {"reference": reference}, "plain": served("other")},
            "algorithm": {"gradient": "top_k", "top_k": TOP_K, "lambda": LAMBDA} | algorithm,
            "data": {"train": "train.jsonl", "batch_size": 1},
            "rollout": {"samples_per_prompt": 2},
            "rewards": "exact",
            "training": {"max_tokens_per_micro_batch": 48} | (training or {}),
            "optimizer": {"type": "sgd", "lr": 1.0, "weight_decay": 0.0},
        }
    )


def answers(folders: dict[str, Path]) -> Answers:
    """{prompt and response: what the server of its teacher would say}."""
    frozen = {name: load_plain(folders[teacher]) for name, (teacher, _) in JUDGES.items()}
    said = {}
    for trajectory in batch():
        law = law_of(frozen[trajectory.prompt.teacher], trajectory.prompt.teacher_tokens, trajectory).detach()
        top = law.topk(TOP_K)
        of_sampled = law.gather(1, torch.tensor(trajectory.response_tokens)[:, None].long())[:, 0]
        key = (*trajectory.prompt.teacher_tokens, *trajectory.response_tokens)
        said[key] = Scored(of_sampled.numpy(), top.indices.int().numpy(), top.values.numpy())
    return said


class StandIn:
    """In the place of a ServedScorer."""

    def __init__(self, said: Answers, reference: Path):
        self.said, self.reference = said, reference

    def ask_top(self, rows: list[Row], top_k: int, names: list[str]) -> Callable[[], list[Scored]]:
        assert top_k == TOP_K and len(names) == len(rows)
        return lambda: [self.said[(*row.prompt_tokens, *row.response_tokens)] for row in rows]

    def ask_ids(self, rows: list[Row], ids: list[np.ndarray], names=None) -> Callable[[], list[np.ndarray]]:
        model = load_plain(self.reference)
        laws = [law_of(model, list(row.prompt_tokens), row).detach().numpy() for row in rows]
        # of -1, an id that counts for nothing, anything will do
        return lambda: [np.take_along_axis(law, of_row, axis=1) for law, of_row in zip(laws, ids, strict=True)]


def take_step(folders: dict[str, Path], said: Answers, **keys) -> tuple[object, dict[str, np.ndarray], list]:
    """The Update, the weights after it, the trajectories, which are scored in two chunks."""
    config = settings(folders, **keys)
    student, scorers, trajectories = Student(config), TopKScorers(config), batch()
    scorers._served = dict.fromkeys(scorers._served, StandIn(said, folders["past"]))
    scorers.score(trajectories[:2])
    scorers.score(trajectories[2:])
    scorers.wait()
    update = student.update(trajectories, loss_of(config.algorithm), scorers.payload)
    return update, weights_of(student), trajectories


def take_all(folders: dict[str, Path], said: Answers, cases: dict[str, dict]) -> dict:
    return {case: take_step(folders, said, **keys) for case, keys in cases.items()}


def plain_step(folders: dict[str, Path], said: Answers, **keys) -> SimpleNamespace:
    """Of one SGD step: the loss, the weights after it, and of every trajectory its columns."""
    asked = settings(folders, **keys).algorithm
    model = load_plain(folders["student"])
    references = {name: load_plain(folders[reference]) for name, (_, reference) in JUDGES.items()}
    losses, columns = [], []
    for trajectory in batch():
        scored = said[(*trajectory.prompt.teacher_tokens, *trajectory.response_tokens)]
        mine = law_of(model, trajectory.prompt.student_tokens, trajectory)
        base = law_of(references[trajectory.prompt.teacher], trajectory.prompt.reference_tokens, trajectory).detach()
        laws = _coarse_laws(trajectory, scored, mine, base)
        divergence = torch.stack([_divergence(*of_token, asked) for of_token in laws])
        taken = torch.tensor(trajectory.response_tokens)[:, None].long()
        logprobs, of_reference = (law.gather(1, taken)[:, 0] for law in (mine, base))
        weight = (logprobs.detach() - torch.from_numpy(trajectory.behaviour_logprobs)).exp().clamp(max=5.0)
        gain = asked.reward_weight * trajectory.outcome * weight * torch.exp(logprobs - logprobs.detach())
        losses.append((divergence - gain).mean())
        found = {"target_kl": divergence, "logprobs": logprobs, "reference_logprobs": of_reference}
        columns.append({name: value.detach().numpy() for name, value in found.items()})
    loss = torch.stack(losses).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    weights = {name: each.detach().numpy().copy() for name, each in model.named_parameters()}
    return SimpleNamespace(loss=loss.item(), weights=weights, columns=columns)


def law_of(model, prompt: list[int], trajectory: Trajectory | Row) -> torch.Tensor:
    """[response, vocabulary] log-probs."""
    tokens = torch.tensor([[*prompt, *trajectory.response_tokens]])
    return model(tokens).logits[0].log_softmax(-1)[len(prompt) - 1 : -1]


def _coarse_laws(trajectory: Trajectory, scored: Scored, mine: torch.Tensor, base: torch.Tensor):
    """Of every token: three coarse laws, each of the support in one order and the tail."""
    rows = min(mine.shape[1], base.shape[1])
    for place, token in enumerate(trajectory.response_tokens.tolist()):
        told = dict(zip(scored.top_ids[place].tolist(), scored.top_logprobs[place].tolist(), strict=True))
        told = {id_: value for id_, value in told.items() if id_ < rows} | {token: float(scored.logprobs[place])}
        good = torch.tensor(list(told.values()))
        yield tuple(map(_with_tail, (mine[place, list(told)], good, base[place, list(told)])))


def _with_tail(law: torch.Tensor) -> torch.Tensor:
    return torch.cat([law, (1 - law.exp().sum()).log()[None]])


def _divergence(mine: torch.Tensor, good: torch.Tensor, base: torch.Tensor, asked) -> torch.Tensor:
    beyond = (asked.lambda_ - 1) * (good - base)
    if asked.clamp is not None:
        beyond = beyond.clamp(-asked.clamp, asked.clamp)
    target = (good + beyond).log_softmax(-1)
    one, other = (mine, target) if asked.divergence == "reverse_kl" else (target, mine)
    return (one.exp() * (one - other)).sum()
