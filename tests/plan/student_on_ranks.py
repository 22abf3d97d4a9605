"""What a real rank holds and sends in one update and one scoring pass, and the same of a fake rank."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import numpy as np
import torch.distributed as dist

from megatron_gopd.config import Config, Layout
from megatron_gopd.data.packing import Row
from megatron_gopd.data.trajectory import Prompt, Trajectory
from megatron_gopd.objective import gopd_loss
from megatron_gopd.plan import seams
from megatron_gopd.plan.dry_run import held_by
from megatron_gopd.plan.fake_ranks import as_rank
from megatron_gopd.plan.ledger import Ledger
from megatron_gopd.policies import scoring
from megatron_gopd.policies.student import Student

TOKENS = 64


def settings(folder: Path, layout: str, dtype: str) -> Config:
    return Config.model_validate(
        {
            "run": {"name": "test", "steps": 1},
            "student": {"model": str(folder), "layout": Layout.parse(layout), "dtype": dtype, "offload": False},
            "teachers": {"teacher": {"model": "/teacher"}},
            "data": {"train": "train.jsonl", "batch_size": 1},
            "training": {"max_tokens_per_micro_batch": TOKENS},
        }
    )


def batch(replicas: int, micro_batches: int) -> list[Trajectory]:
    """One row a micro-batch, all of one length: every replica has as much to do."""
    prompt = Prompt("p", [], None, "teacher", [1, 2, 3], [1, 2, 3], [1, 2, 3])
    zeros = np.zeros(TOKENS - 2, dtype=np.float32)
    scores = {"teacher_logprobs": zeros, "reference_logprobs": zeros}
    rows = range(replicas * micro_batches)
    return [Trajectory(prompt, 0, np.full(TOKENS - 2, 4, np.int32), zeros, "stop", **scores) for _ in rows]


def observe(config: Config, ledger: Ledger) -> dict:
    """{held: bytes, update / score: (how many messages, their bytes) of each kind and group} of this rank."""
    student, layout = Student(config), config.student.layout
    replicas = len(layout.span(dist.get_world_size(), "student")) // (layout.tp * layout.pp * layout.cp)
    rows = batch(replicas, layout.pp)
    with ledger.part("update"):
        student.update(rows, gopd_loss(1.0, None))
    held = held_by(student)
    asked = [Row(row.prompt.student_tokens, row.response_tokens) for row in rows]
    with ledger.part("score"):
        scoring.score(student.model, asked, temperature=1.0, max_tokens=TOKENS)
    sent = {"score": ["score"], "update": ["update", "gradients", "step"]}
    return {"held": held and asdict(held)} | {name: _messages(ledger, parts) for name, parts in sent.items()}


def _messages(ledger: Ledger, parts: list[str]) -> tuple[Counter, Counter]:
    known = [ledger.parts[part] for part in parts if part in ledger.parts]
    return sum((c.collectives for c in known), Counter()), sum((c.sent_bytes for c in known), Counter())


def observe_real(cases: list[tuple[Path, str, str]]) -> dict:
    """{case: what each rank observes}; experts are drawn evenly here too, whatever the router says."""
    dispatcher = seams.token_dispatcher.MoEAlltoAllTokenDispatcher
    evenly = mock.patch.object(dispatcher, "dispatch_preprocess", seams._evenly(dispatcher.dispatch_preprocess))
    found = {}
    for case in cases:
        ranks: list = [None] * dist.get_world_size()
        with evenly, Ledger() as ledger:
            mine = observe(settings(*case), ledger)
        dist.all_gather_object(ranks, mine)
        found[case] = ranks
    return found


def observe_fake(case: tuple[Path, str, str], rank: int, world: int) -> dict:
    config = settings(*case)
    with as_rank(rank, world) as ledger:
        return observe(config, ledger)
