"""Where the search puts SGLang servers."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_gopd.config import Config

SIZES = ("tp-size", "dp-size", "pp-size")


def placements(config: Config, gpus: int) -> Iterator[tuple[dict, Config]]:
    """(overrides, configuration with them), of nodes of `gpus`: as configured; and with servers of one or two GPUs on
    every node, on all of its GPUs, which they share with ranks, or on a quarter or half of them alone."""
    yield {}, config
    if not config.algorithm.SAMPLES_STUDENT or config.rollout.sglang.urls:
        return
    kept = {name: value for name, value in config.rollout.sglang.flags.items() if name not in SIZES}
    for tp in (1, 2):
        for servers in _on_each_node(gpus, tp):
            servers["options"] = kept | {"tp-size": tp}
            if servers["colocated"] and not config.rollout.sglang.flushes:
                servers["on_update"] = "retract"
            sglang = config.rollout.sglang.model_copy(update=servers)
            changed = {"engine": "sglang", "max_batch_size": 256}  # sequences of a server
            if servers["colocated"]:
                changed |= _nothing_ahead(config)
            rollout = changed | {"sglang": sglang}
            overrides = {f"rollout.{key}": value for key, value in changed.items()}
            overrides |= {f"rollout.sglang.{key}": value for key, value in servers.items()}
            yield overrides, config.model_copy(update={"rollout": config.rollout.model_copy(update=rollout)})


def _nothing_ahead(config: Config) -> dict:
    """What keeps the schema's rule: of what is sampled ahead of its step, colocated servers do nothing."""
    ahead = {"max_staleness": 0, "over_sampling": 1.0, "max_age": None, "order_window": None}
    return {key: value for key, value in ahead.items() if getattr(config.rollout, key) != value}


def _on_each_node(gpus: int, tp: int) -> Iterator[dict]:
    """Colocated from the first GPU on, otherwise on the last ones."""
    for colocated, count in ((True, gpus // tp), (False, gpus // 4 // tp), (False, gpus // 2 // tp)):
        if count < 1:
            continue
        first = 0 if colocated else gpus - count * tp
        places = [list(range(first + i * tp, first + (i + 1) * tp)) for i in range(count)]
        sync = "disk" if colocated else "distributed"  # NCCL has no two ranks on one GPU
        yield {"colocated": colocated, "nodes": "all", "count": count, "gpus": places, "sync": sync}
