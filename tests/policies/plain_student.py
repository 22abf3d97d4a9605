"""The same optimizer steps in plain transformers and torch, for comparison."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from tests.policies.steps_on_ranks import CAP, LAMBDA, TEMPERATURE, batch
from tests.tiny_models import load_plain, with_single_experts


def plain_steps(folder: Path, steps: int, *, type: str, lr: float, clip_grad: float, eps: float = 1e-8):
    """What `take_steps` returns, row by row and with autograd through the logits."""
    model = load_plain(folder)
    kinds = {
        "sgd": lambda parameters: torch.optim.SGD(parameters, lr=lr),
        "adam": lambda parameters: torch.optim.AdamW(parameters, lr=lr, eps=eps, weight_decay=0.0),
    }
    optimizer = kinds[type](model.parameters())
    updates = []
    for _ in range(steps):
        optimizer.zero_grad()
        update = loss_and_columns(model)
        update.loss.backward()
        update.loss = update.loss.item()
        update.grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip_grad or torch.inf).item()
        optimizer.step()
        updates.append(update)
    weights = {name: parameter.detach().numpy().copy() for name, parameter in model.named_parameters()}
    return updates, with_single_experts(weights)


def loss_and_columns(model) -> SimpleNamespace:
    """The loss as a mean over rows of token means, in its ratio form; log-probs, entropy, advantage of every row."""
    losses, columns = [], SimpleNamespace(logprobs=[], entropy=[], advantage=[])
    for trajectory in batch():
        tokens = torch.tensor([[*trajectory.prompt.student_tokens, *trajectory.response_tokens]])
        law = (model(tokens).logits[0] / TEMPERATURE).log_softmax(-1)[len(trajectory.prompt.student_tokens) - 1 : -1]
        logprobs = law.gather(1, torch.tensor(trajectory.response_tokens)[:, None])[:, 0]
        old = logprobs.detach()
        teacher, reference = (
            torch.from_numpy(column) for column in (trajectory.teacher_logprobs, trajectory.reference_logprobs)
        )
        advantage = LAMBDA * (teacher - reference) - (old - reference)
        correction = torch.exp(old - torch.from_numpy(trajectory.behaviour_logprobs)).clamp(max=CAP)
        losses.append(-(correction * advantage * torch.exp(logprobs - old)).mean())
        columns.logprobs.append(old.numpy())
        columns.entropy.append(-(law.exp() * law).sum(1).detach().numpy())
        columns.advantage.append(np.asarray(advantage))
    columns.loss = torch.stack(losses).mean()
    return columns
