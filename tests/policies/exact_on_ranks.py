"""What a rank of test_exact does, and the same step in plain transformers and torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from megatron_gopd.config import Config, Layout
from megatron_gopd.data.trajectory import Prompt, Trajectory
from megatron_gopd.objective import loss_of
from megatron_gopd.policies.hidden_scorers import HiddenScorers
from megatron_gopd.policies.student import Student
from tests.chat_models import save_chat_model, tokenizer
from tests.policies.steps_on_ranks import LENGTHS, weights_of
from tests.tiny_models import load_plain

LAMBDA, TEMPERATURE, OUTCOMES = 1.25, 0.8, [1.0, -0.5, 0.0, 2.0, -1.0]
SHARED = len(tokenizer())


def save_models(folder: Path) -> dict[str, Path]:
    """Hidden sizes differ, and rows of vocabulary."""
    return {
        "student": save_chat_model(folder / "student", seed=1, tie_word_embeddings=True),
        "other": save_chat_model(folder / "other", seed=2, hidden_size=48),
        "teacher": save_chat_model(folder / "teacher", seed=3, family="Llama", hidden_size=96, vocab_size=307),
        "past": save_chat_model(folder / "past", seed=4, vocab_size=400),
    }


def settings(folders: dict[str, Path], *, layout="", scorers="", training=None, strong=None, plain=None, **algorithm):
    """Two teachers: `strong` has a reference of its own, `plain` the student's start.

    plain: the lambda of that teacher; None: the algorithm's.
    strong: keys of that teacher, which is in the job as all others are unless they say so.
    """

    def frozen(name: str) -> dict:
        return {"model": str(folders[name]), "dtype": "float32", "layout": Layout.parse(scorers)}

    strong = frozen("teacher") | {"reference": frozen("past")} | (strong or {})
    return Config.model_validate(
        {
            "run": {"name": "test", "steps": 10},
            "student": {"model": str(folders["student"]), "layout": Layout.parse(layout), "dtype": "float32"},
            "teachers": {"strong": strong, "plain": frozen("other") | {"lambda": plain}},
            "algorithm": {"gradient": "exact", "lambda": LAMBDA} | algorithm,
            "data": {"train": "train.jsonl", "batch_size": 1},
            "rollout": {"temperature": TEMPERATURE, "samples_per_prompt": 2},
            "rewards": "exact",
            "training": {"max_tokens_per_micro_batch": 48} | (training or {}),
            "optimizer": {"type": "sgd", "lr": 1.0, "weight_decay": 0.0},
        }
    )


def batch() -> list[Trajectory]:
    """A teacher reads another prompt than the student, which shifts its positions."""
    random = np.random.default_rng(1)
    trajectories = []
    for number, (prompt, response) in enumerate(LENGTHS):
        tokens, answer = (random.integers(0, SHARED, length).tolist() for length in (prompt, response))
        teacher, read = ("strong", "plain")[number % 2], [7, 8, *tokens]
        asked = Prompt(f"p{number}", [], None, teacher, tokens, read, tokens, f"train.jsonl:{number + 1}")
        behaviour = random.normal(-6, 0.7, response).astype(np.float32)
        trajectories.append(Trajectory(asked, 0, np.array(answer, np.int32), behaviour, "stop"))
        trajectories[-1].outcome = OUTCOMES[number]
    return trajectories


def take_step(folders: dict[str, Path], ahead: int, **keys) -> tuple[object, dict[str, np.ndarray], list]:
    """The Update, the weights after it, the trajectories; the first `ahead` of these are scored before the update."""
    config = settings(folders, **keys)
    student, scorers, trajectories = Student(config), HiddenScorers(config), batch()
    scorers.start(folders["student"].parent)
    scorers.score(trajectories[:ahead])
    update = student.update(trajectories, loss_of(config.algorithm), scorers.payload)
    scorers.close()
    return update, weights_of(student), trajectories


def take_all(folders: dict[str, Path], cases: dict[str, dict]) -> dict:
    return {case: take_step(folders, **keys) for case, keys in cases.items()}


def plain_step(folders: dict[str, Path], **keys) -> tuple[float, dict[str, np.ndarray], list[dict[str, np.ndarray]]]:
    """The loss, the weights after its SGD step, and of every trajectory its columns."""
    config = settings(folders, **keys)
    model = load_plain(folders["student"])
    judges = {"strong": ("teacher", "past"), "plain": ("other", "student")}
    frozen = {name: load_plain(folder) for name, folder in folders.items()}
    losses, columns = [], []
    for trajectory in batch():
        teacher, reference = judges[trajectory.prompt.teacher]
        with torch.no_grad():
            good = _law(frozen[teacher], trajectory.prompt.teacher_tokens, trajectory)
            base = _law(frozen[reference], trajectory.prompt.reference_tokens, trajectory)
        mine = _law(model, trajectory.prompt.student_tokens, trajectory)
        lambda_ = config.lambda_of(trajectory.prompt.teacher)
        divergence = _divergence(mine, good, base, lambda_, config.algorithm)
        taken = torch.tensor(trajectory.response_tokens)[:, None].long()
        logprobs = mine.gather(1, taken)[:, 0]
        weight = (logprobs.detach() - torch.from_numpy(trajectory.behaviour_logprobs)).exp().clamp(max=5.0)
        reward = config.algorithm.reward_weight * trajectory.outcome
        gain = reward * weight * torch.exp(logprobs - logprobs.detach())
        losses.append((divergence - gain).mean())
        found = {"target_kl": divergence, "teacher_logprobs": good.gather(1, taken)[:, 0], "logprobs": logprobs}
        columns.append({name: value.detach().numpy() for name, value in found.items()})
    loss = torch.stack(losses).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    return loss.item(), {name: each.detach().numpy().copy() for name, each in model.named_parameters()}, columns


def _law(model, prompt: list[int], trajectory: Trajectory) -> torch.Tensor:
    tokens = torch.tensor([[*prompt, *trajectory.response_tokens]])
    return (model(tokens).logits[0] / TEMPERATURE).log_softmax(-1)[len(prompt) - 1 : -1]


def _divergence(mine: torch.Tensor, good: torch.Tensor, base: torch.Tensor, lambda_: float, algorithm) -> torch.Tensor:
    """Over the tokenizer's ids, all three renormalised there; clamped against log-probs over all rows."""
    beyond = (lambda_ - 1) * (good[:, :SHARED] - base[:, :SHARED])
    if algorithm.clamp is not None:
        beyond = beyond.clamp(-algorithm.clamp, algorithm.clamp)
    target, mine = (good[:, :SHARED] + beyond).log_softmax(-1), mine[:, :SHARED].log_softmax(-1)
    one, other = (mine, target) if algorithm.divergence == "reverse_kl" else (target, mine)
    return (one.exp() * (one - other)).sum(1)


def fetched(held: dict[int, list[int]], wanted: dict[int, list[int]], tokens: int, dtype: torch.dtype) -> Iterator:
    """What each rank gets of a table whose row i is (i, 2 i)."""
    from megatron_gopd.policies.exchange import fetch
    from megatron_gopd.policies.hidden_states import Held

    indices = torch.tensor(held.get(dist.get_rank(), []), dtype=torch.int64)
    mine = Held(indices, torch.stack([indices, 2 * indices], 1).to(dtype))
    rows = fetch(mine, torch.tensor(wanted.get(dist.get_rank(), []), dtype=torch.int64), tokens)
    everywhere: list = [None] * dist.get_world_size()
    dist.all_gather_object(everywhere, rows.float().tolist())
    return everywhere
