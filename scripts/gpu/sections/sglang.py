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
# of a server alone on the card, and of one beside others, whose memory comes and goes while it measures what is free
ALONE = {"enable-memory-saver": True, "enable-weights-cpu-backup": True, "mem-fraction-static": 0.5}
BESIDE = {"mem-fraction-static": 0.6, "max-total-tokens": 65536}
AGREE = {"bfloat16": 0.05, "float32": 2e-5}  # nats in the mean, of two ways to the same log-probs
AGAIN = {"bfloat16": 0.1, "float32": 2e-5}  # nats, the worst, of the same way taken again
CHANGES = 0.1  # nats that doubling a norm moves a log-prob by, at least


def cases(bench: Bench) -> list[Case]:
    if bench.facts["versions"]["sglang"] is None:
        return [Case("sglang", "server and runs", _missing)]
    colocated = {"colocated": bench.gpu}  # on a CPU a server has no memory of a GPU to give away
    if bench.quick:
        return [Case("sglang", "run, disk", partial(run, bench, "disk", colocated))]
    ways = {"disk": {}, "tensor": colocated}
    runs = [Case("sglang", f"run, {way}", partial(run, bench, way, more)) for way, more in ways.items()]
    return [Case("sglang", "server", partial(server, bench)), *runs]


def server(bench: Bench) -> list[Check]:
    """Alone on the card, for its memory is looked at."""
    dtype, model = _dtype(bench), bench.model("student")
    given, log = json.dumps(_options(bench, ALONE)), bench.folder / "server.log"
    timing = {"timeout": STARTS_S, "alone": bench.gpu}
    found = bench.program("server", model, dtype, given, log, name="server", **timing)
    again = AGAIN[dtype]
    checks = [
        Check("server starts", f"{found['start']:.0f} s", "", True),
        at_most("scores are the sampled log-probs", found["sampled"], AGREE[dtype], "nats in the mean"),
        Check("new weights are used", f"{found['new weights']:.2f} nats", f">= {CHANGES}", _moved(found)),
        Check("their version is told", found["version"], "doubled", found["version"] == "doubled"),
        at_most("old weights are back", found["old weights"], again, "nats"),
    ]
    return checks + (_memory(found, again) if bench.gpu else [])


def run(bench: Bench, way: str, more: dict) -> Check:
    """Two steps with an update each; every weight is proven where checksums can be compared."""
    dtype = _dtype(bench)
    given = tree(bench, f"sglang-{way}", dtype=dtype, steps=2)
    servers = {"sync": way, "verify_every": 1, "options": _options(bench, BESIDE)} | more
    given["rollout"] |= {"engine": "sglang", "sglang": servers}
    told = f"run, 2 steps, sync {way}{', colocated' if more.get('colocated') else ''}"
    return sound(told, bench.train(given), steps=2, dtype=dtype, agree=AGREE[dtype])


def _memory(found: dict, again: float) -> list[Check]:
    told = f"{found['freed']:.1f} of {found['held']:.1f} GiB"
    given = Check("memory is given back", told, ">= half", found["freed"] >= found["held"] / 2)
    return [given, at_most("scores after it came back", found["after memory"], again, "nats")]


def _moved(found: dict) -> bool:
    return found["new weights"] >= CHANGES


def _options(bench: Bench, on_gpu: dict) -> dict:
    """With $SGLANG_OPTIONS, YAML: what this machine's installation asks for."""
    return (on_gpu if bench.gpu else {}) | (yaml.safe_load(os.environ.get("SGLANG_OPTIONS", "")) or {})


def _dtype(bench: Bench) -> str:
    return "bfloat16" if bench.gpu else "float32"


def _missing() -> Check:
    raise Skipped("SGLang is not installed")
