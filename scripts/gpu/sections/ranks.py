"""Two ranks on the one card, every kind of layout, against one rank."""

from __future__ import annotations

from functools import partial

import yaml

from scripts.gpu.checks.bench import Bench
from scripts.gpu.checks.cases import Case
from scripts.gpu.checks.rank_runs import run_jobs
from scripts.gpu.checks.result import Check, Skipped, at_most, both
from scripts.gpu.checks.runs import Run, sound, tree
from scripts.gpu.checks.scores import largest, mean, read_scores, write_rows

RANKS, STEPS, OLDEST_NCCL = 2, 2, [2, 30]
EXACT, NEAR = 1e-4, 0.02  # float32: nats, and the share of a gradient norm; bf16: nats in the mean
LAYOUTS = {
    "tp 2 + sp": ("student", {"tp": 2, "sequence_parallel": True}),
    "pp 2": ("student", {"pp": 2}),
    "cp 2": ("student", {"cp": 2}),
    "dp 2": ("student", {}),
    "ep 2": ("expert-student", {"ep": 2}),
}
ROLES = "three roles in three layouts"
SKIPPED_BY_A_QUICK = ("cp 2", "dp 2")
COMPARED = ("loss", "reverse_kl")


def cases(bench: Bench) -> list[Case]:
    if bench.gpu and (bench.facts["nccl"] or [0])[:2] < OLDEST_NCCL:
        return [Case("ranks", "two ranks on one GPU", partial(_refused, bench.facts["nccl"]))]
    kinds, found = _kinds(bench), []
    for dtype, compare in (("float32", in_float32), ("bfloat16", in_bf16)):
        found += [Case("ranks", f"{kind}, {dtype}", partial(compare, bench, kind)) for kind in kinds]
    return [*found, Case("ranks", ROLES, partial(three_roles, bench))]


def in_float32(bench: Bench, kind: str) -> Check:
    """Scores, and two steps of training."""
    one, two = (_scores(bench, kind, "float32", ranks) for ranks in (1, RANKS))
    runs = [_run(bench, kind, ranks) for ranks in (1, RANKS)]
    score = at_most("scores", largest(one, two), EXACT)
    return both(f"{kind}, float32", score, *_steps_apart(*runs))


def in_bf16(bench: Bench, kind: str) -> Check:
    one, two = (_scores(bench, kind, "bfloat16", ranks) for ranks in (1, RANKS))
    return at_most(f"{kind}, bfloat16", mean(one, two), NEAR, "nats in the mean")


def three_roles(bench: Bench) -> Check:
    one, two = (_run(bench, ROLES, ranks) for ranks in (1, RANKS))
    return both(ROLES, sound("", two, steps=STEPS, dtype="float32"), *_steps_apart(one, two))


def _steps_apart(one: Run, two: Run) -> list[Check]:
    pairs = list(zip(one.rows, two.rows, strict=True))
    nats = max(abs(a[key] - b[key]) for a, b in pairs for key in COMPARED)
    norm = max(abs(a["grad_norm"] / b["grad_norm"] - 1) for a, b in pairs)
    return [at_most("loss, KL", nats, EXACT), at_most("gradient norm", norm, EXACT)]


def _scores(bench: Bench, kind: str, dtype: str, ranks: int) -> list[dict]:
    _done(bench, f"score {kind} {dtype}", ranks)
    return read_scores(_target(bench, kind, dtype, ranks))


def _run(bench: Bench, kind: str, ranks: int) -> Run:
    _done(bench, f"train {kind}", ranks)
    return Run(bench.folder / "runs" / _name(kind, ranks))


def _done(bench: Bench, job: str, ranks: int) -> None:
    """Raises RuntimeError: what went wrong with a job."""
    name = f"ranks-{ranks}"
    error = bench.once(name, lambda: run_jobs(bench, _jobs(bench, ranks), ranks, name))[job]
    if error:
        raise RuntimeError(error)


def _jobs(bench: Bench, ranks: int) -> list[dict]:
    kinds = _kinds(bench)
    scores = [_score_job(bench, kind, dtype, ranks) for kind in kinds for dtype in ("float32", "bfloat16")]
    return scores + [_train_job(bench, kind, ranks) for kind in (*kinds, ROLES)]


def _score_job(bench: Bench, kind: str, dtype: str, ranks: int) -> dict:
    model, layout = LAYOUTS[kind]
    rows = write_rows(bench.folder / f"rank-rows-{model}.jsonl", model, bench.device)
    written = ",".join(f"{key}={str(value).lower()}" for key, value in layout.items()) if ranks > 1 else ""
    asked = [bench.model(model), rows, _target(bench, kind, dtype, ranks), written, dtype]
    return {"name": f"score {kind} {dtype}", "score": list(map(str, asked))}


def _train_job(bench: Bench, kind: str, ranks: int) -> dict:
    model, layout = LAYOUTS.get(kind, ("student", {"tp": 2}))
    given = tree(bench, _name(kind, ranks), dtype="float32", steps=STEPS, student=model)
    if kind == ROLES:
        given["teachers"]["one"]["reference"] = {"model": str(bench.model("reference")), "dtype": "float32"}
    if ranks > 1:
        given["student"]["layout"] = layout
        if kind == ROLES:
            given["teachers"]["one"]["layout"] = {"pp": 2}
            given["teachers"]["one"]["reference"]["layout"] = {"cp": 2}
    config = bench.folder / f"{_name(kind, ranks)}.yaml"
    config.write_text(yaml.safe_dump(given))
    return {"name": f"train {kind}", "train": str(config)}


def _kinds(bench: Bench) -> list[str]:
    return [name for name in LAYOUTS if not (bench.quick and name in SKIPPED_BY_A_QUICK)]


def _refused(nccl: list[int] | None) -> Check:
    told = ".".join(map(str, nccl or ["none"]))
    raise Skipped(f"NCCL {told} refuses two ranks on one GPU, 2.30 does not: LD_PRELOAD=.../libnccl.so.2")


def _target(bench: Bench, kind: str, dtype: str, ranks: int):
    return bench.folder / f"{_name(kind, ranks)}-{dtype}.jsonl"


def _name(kind: str, ranks: int) -> str:
    return f"ranks-{ranks}-{kind.replace(' + ', '-').replace(' ', '-')}"
