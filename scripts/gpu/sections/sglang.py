"""SGLang where it is installed: a server by itself, and runs that sample from one on the trainer's card."""

from __future__ import annotations

import json
import os
from functools import partial

import yaml

from scripts.gpu.checks.bench import Bench
from scripts.gpu.checks.cases import Case
from scripts.gpu.checks.result import Check, Skipped, at_most
from scripts.gpu.checks.runs import sound, tree

STARTS_S = 360.0  # a server compiles at its first start
MEMORY = {"enable-memory-saver": True, "enable-weights-cpu-backup": True}
SHARE = 0.25  # of the card: others are on it
AGREE = {"bfloat16": 0.05, "float32": 2e-5}  # nats
CHANGES = 0.1  # nats that doubling a norm moves a log-prob by, at least


def cases(bench: Bench) -> list[Case]:
    ways = {"disk": {}} if bench.quick else {"disk": {}, "tensor": {"colocated": bench.gpu}}
    runs = [Case("sglang", f"run, {way}", partial(run, bench, way, more)) for way, more in ways.items()]
    return [Case("sglang", "server", partial(server, bench)), *runs]


def server(bench: Bench) -> list[Check]:
    """Alone on the card, for its memory is looked at."""
    _needs_sglang(bench)
    dtype, model = _dtype(bench), bench.model("student")
    given = json.dumps((MEMORY if bench.gpu else {}) | _options(bench))
    log = bench.folder / "server.log"
    timing = {"timeout": STARTS_S, "alone": bench.gpu}
    found = bench.program("server", model, dtype, given, log, name="server", **timing)
    near = AGREE[dtype]
    checks = [
        Check("server starts", f"{found['start']:.0f} s", "", True),
        at_most("scores are the sampled log-probs", found["sampled"], near, "nats in the mean"),
        Check("new weights are used", f"{found['new weights']:.2f} nats", f">= {CHANGES}", _moved(found)),
        Check("their version is told", found["version"], "doubled", found["version"] == "doubled"),
        at_most("old weights are back", found["old weights"], near, "nats"),
    ]
    return checks + (_memory(found, near) if bench.gpu else [])


def run(bench: Bench, way: str, more: dict) -> Check:
    """Two steps with an update each; every weight is proven where checksums can be compared."""
    _needs_sglang(bench)
    dtype = _dtype(bench)
    given = tree(bench, f"sglang-{way}", dtype=dtype, steps=2)
    servers = {"sync": way, "verify_every": 1, "options": _options(bench)} | more
    given["rollout"] |= {"engine": "sglang", "sglang": servers}
    told = f"run, 2 steps, sync {way}{', colocated' if more.get('colocated') else ''}"
    return sound(told, bench.train(given), steps=2, dtype=dtype, agree=AGREE[dtype])


def _memory(found: dict, near: float) -> list[Check]:
    told = f"{found['freed']:.1f} of {found['held']:.1f} GiB"
    given = Check("memory is given back", told, ">= half", found["freed"] >= found["held"] / 2)
    return [given, at_most("scores after it came back", found["after memory"], near, "nats")]


def _moved(found: dict) -> bool:
    return found["new weights"] >= CHANGES


def _options(bench: Bench) -> dict:
    """$SGLANG_OPTIONS, YAML: what this machine's installation asks for."""
    ours = {"mem-fraction-static": SHARE} if bench.gpu else {}
    return ours | (yaml.safe_load(os.environ.get("SGLANG_OPTIONS", "")) or {})


def _dtype(bench: Bench) -> str:
    return "bfloat16" if bench.gpu else "float32"


def _needs_sglang(bench: Bench) -> None:
    if bench.facts["versions"]["sglang"] is None:
        raise Skipped("SGLang is not installed")
