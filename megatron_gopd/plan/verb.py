"""`megatron-gopd plan`: what is printed and written for one configuration."""

from __future__ import annotations

import json
from pathlib import Path

from megatron_gopd.config import Config
from megatron_gopd.config.placement import filled
from megatron_gopd.errors import UserError
from megatron_gopd.plan.hardware import machine
from megatron_gopd.plan.overrides import as_yaml
from megatron_gopd.plan.picture import draw
from megatron_gopd.plan.planning import plan
from megatron_gopd.plan.report import show, show_search
from megatron_gopd.plan.roles import as_written
from megatron_gopd.plan.rollouts import refuse_without_own_servers, simulate, with_simulated_step
from megatron_gopd.plan.rollouts_report import rollouts_as_json, show_rollouts
from megatron_gopd.plan.search import search
from megatron_gopd.plan.tree import as_json
from megatron_gopd.plan.workload import Workload
from megatron_gopd.runs.atomic import write_text


def run_plan(config: Config, **asked) -> str:
    """What to print. Raises UserError: a mistake in the configuration, the machines, or their number."""
    try:
        return _run_plan(config, **asked)
    except UserError as error:
        raise UserError(as_written(str(error))) from None


def _run_plan(
    config: Config,
    *,
    gpus: int,
    gpu: str,
    nodes: int | None,
    models: Path,
    work: Workload,
    searched: bool,
    simulated: bool,
    json_wanted: bool,
    output: Path | None,
) -> str:
    on = machine(gpu)
    on = on.model_copy(update={"gpus_per_node": filled(gpus, nodes, on.gpus_per_node)})
    if output:
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output {output}: {error.strerror}; name a folder") from None
    if searched:
        found = search(config, gpus, on, work, models)
        if output:
            write_text(output / "best.yaml", as_yaml(found[0].overrides))
            draw(found[0].plan, output)
        if json_wanted:
            ranked = [{"overrides": one.overrides, "step_s": one.plan.time.step} for one in found]
            return json.dumps(ranked, indent=1)
        return show_search(found) + (f"\n{output / 'best.yaml'}: written" if output else "")
    if simulated:
        refuse_without_own_servers(config)
        found = simulate(plan(config, gpus, on, work, models))
        return rollouts_as_json(found) if json_wanted else show_rollouts(found)
    planned = with_simulated_step(plan(config, gpus, on, work, models))
    written = draw(planned, output) if output else []
    return as_json(planned) if json_wanted else "\n".join([show(planned), *(f"{path}: written" for path in written)])
