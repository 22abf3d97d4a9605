"""Where the search puts SGLang servers."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_gopd.config import Config


def placements(config: Config, gpus: int, gpus_per_node: int) -> Iterator[tuple[dict, Config, int]]:
    """(overrides, configuration with them, GPUs of this job): as configured; and servers of one or two GPUs: on all of
    a node's, or on a quarter or half of them alone; of several nodes, on a quarter or half of the nodes."""
    yield {}, config, gpus
    if config.algorithm.type == "sft" or config.rollout.sglang.urls:
        return
    for tp in (1, 2):
        options = config.rollout.sglang.flags | {"tp-size": tp}
        one = gpus <= gpus_per_node
        ways = _on_a_node(gpus, tp, options) if one else _on_nodes(gpus, gpus_per_node, options, config.run.folder)
        for servers, trainers in ways:
            batch = 256 * servers["options"].get("dp-size", 1)  # sequences of a server
            sglang = config.rollout.sglang.model_copy(update=servers)
            changed = {"engine": "sglang", "max_batch_size": batch}
            if servers["colocated"] and config.rollout.max_staleness:
                changed["max_staleness"] = 0  # the schema's rule
            rollout = changed | {"sglang": sglang}
            overrides = {f"rollout.{key}": value for key, value in changed.items()}
            overrides |= {f"rollout.sglang.{key}": value for key, value in servers.items()}
            yield overrides, config.model_copy(update={"rollout": config.rollout.model_copy(update=rollout)}), trainers


def _on_a_node(gpus: int, tp: int, options: dict) -> Iterator[tuple[dict, int]]:
    """Servers of the run's own: colocated from the first GPU on, otherwise on the last ones."""
    for colocated, count in ((True, gpus // tp), (False, gpus // 4 // tp), (False, gpus // 2 // tp)):
        if count < 1:
            continue
        first = 0 if colocated else gpus - count * tp
        places = [list(range(first + i * tp, first + (i + 1) * tp)) for i in range(count)]
        sync = "disk" if colocated else "distributed"  # NCCL has no two ranks on one GPU
        yield {"colocated": colocated, "count": count, "gpus": places, "options": options, "sync": sync}, gpus


def _on_nodes(gpus: int, gpus_per_node: int, options: dict, shared: str) -> Iterator[tuple[dict, int]]:
    """One server with a replica on every GPU, or pair, of a node; its address is known when it runs."""
    nodes, tp = gpus // gpus_per_node, options["tp-size"]
    if gpus_per_node % tp:
        return
    for serving in sorted({nodes // 4, nodes // 2} - {0}):
        urls = [f"http://NODE{i}:30000" for i in range(serving)]
        servers = {"colocated": False, "gpus": None, "urls": urls, "sync": "disk", "sync_folder": shared}
        yield servers | {"options": options | {"dp-size": gpus_per_node // tp}}, gpus - serving * gpus_per_node
