"""What sampling ahead of the steps buys a planned run: the simulated pipeline under several settings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from megatron_gopd.config import Config
from megatron_gopd.errors import UserError
from megatron_gopd.plan.pipeline import Costs, Pipeline
from megatron_gopd.plan.planned import Plan, most_at_a_time
from megatron_gopd.plan.server_clock import Speed
from megatron_gopd.plan.steady import Setting, Simulated, summary
from megatron_gopd.plan.workload import Workload
from megatron_gopd.policies.passes import tokens_of_a_pass

STALENESS, OVER_SAMPLING = (1, 2, 4), (1.0, 1.25)
STEPS = 30  # that are looked at: whole rounds of K + 1
WARM_UP = 2  # rounds before


@dataclass(frozen=True)
class Rollouts:
    """Of one plan; the first setting is K = 0."""

    plan: Plan
    settings: list[Simulated]
    servers_alone_s: float  # of a step, if every place of every server were taken
    trainer_alone_s: float

    def gain(self, one: Simulated) -> float:
        return self.settings[0].step_s / one.step_s


def simulate(plan: Plan) -> Rollouts:
    """Of a plan that refuse_without_own_servers() lets through."""
    costs = costs_of(plan)
    simulated = [steady(costs, setting, plan.config, plan.work) for setting in settings_of(plan.config)]
    trainer = sum(plan.time.score.values()) + plan.time.update + plan.time.sync
    return Rollouts(plan, simulated, servers_alone(costs, plan.work), trainer)


def settings_of(config: Config) -> list[Setting]:
    """Those that are compared, and the configured one."""
    found = [Setting(), *(Setting(staleness, more) for staleness in STALENESS for more in OVER_SAMPLING)]
    own = own_setting(config)
    return found if own in found else [*found, own]


def own_setting(config: Config) -> Setting:
    return Setting(**{key: getattr(config.rollout, key) for key in Setting.__dataclass_fields__})


def with_simulated_step(plan: Plan) -> Plan:
    """Of a run that samples ahead of its steps: its phases tell only roughly how long a step takes, as servers are
    fuller than with one batch. --search, which prices many layouts, ranks by that."""
    if not plan.config.rollout.max_staleness or plan.where.kind not in ("split", "disjoint"):
        return plan
    step_s = steady(costs_of(plan), own_setting(plan.config), plan.config, plan.work).step_s
    beside = plan.time.step + plan.time.overlapped - step_s
    return replace(plan, time=replace(plan.time, overlapped=beside))


def costs_of(plan: Plan) -> Costs:
    engine, machine, time = plan.where.engine, plan.machine, plan.time
    speed = Speed(
        most_at_a_time(plan.config, plan.where, plan.work, plan.cache_tokens),
        lambda sequences, context: engine.step_seconds(sequences, context, machine),
        lambda tokens: engine.prefill_seconds(tokens, machine),
    )
    score = sum(time.score.values()) / plan.work.tokens
    a_pass = tokens_of_a_pass(plan.config, plan.where.world)
    return Costs(plan.where.engines, speed, score, time.update, time.sync, a_pass)


def steady(costs: Costs, setting: Setting, config: Config, work: Workload) -> Simulated:
    """Of a pipeline whose batches all have the lengths of `work`, each in an order of its own."""
    lengths = shuffled(work.responses, config.rollout.samples_per_prompt, config.run.seed)
    pipeline = Pipeline(costs, setting, config.data.batch_size, work.prompt_tokens, lengths)
    before = WARM_UP * (setting.max_staleness + 1)
    return summary(pipeline.run(before + STEPS), before, costs.servers, setting)


def shuffled(responses: np.ndarray, samples: int, seed: int) -> Iterator[tuple[float, ...]]:
    """The tokens of `samples` responses to each prompt, without an end."""
    random = np.random.default_rng(seed)
    while True:
        yield from map(tuple, random.permutation(responses).astype(float).reshape(-1, samples).tolist())


def servers_alone(costs: Costs, work: Workload) -> float:
    """Seconds of a step's responses on servers of which every place is always taken."""
    responses, slots = work.responses.astype(float), costs.speed.slots
    held = work.prompt_tokens + (responses**2).sum() / responses.sum() / 2  # of a sequence, at any moment
    step = costs.speed.step_seconds(slots, slots * held)
    prefill = costs.speed.prefill_seconds(work.prompt_tokens * work.sequences)
    return (responses.sum() / slots * step + prefill) / costs.servers


def refuse_without_own_servers(config: Config) -> None:
    """Raises UserError: nothing can be sampled while this run trains."""
    rollout = config.rollout
    if not config.algorithm.SAMPLES_STUDENT:
        why = "the student samples nothing (algorithm.type)"
    elif rollout.engine != "sglang":
        why = "the engine is in the ranks that train (rollout.engine)"
    elif rollout.sglang.colocated:
        why = "servers give their memory away while the run trains (rollout.sglang.colocated)"
    elif rollout.sglang.shares_gpus:
        why = "servers compute on the GPUs that train (rollout.sglang.sync: tensor)"
    else:
        return
    raise UserError(
        f"--rollout: nothing is sampled while this run trains, as {why}. Servers need GPUs of their own: "
        f"rollout.engine: sglang, rollout.sglang.colocated: false, and a count below the GPUs of a node"
    )
