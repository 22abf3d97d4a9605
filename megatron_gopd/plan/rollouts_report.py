"""Simulated rollouts in words, and as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict

from megatron_gopd.plan.report import head, markdown_table
from megatron_gopd.plan.rollouts import Rollouts
from megatron_gopd.plan.steady import Simulated

COLUMNS = "K,over-sampling,step s,steps/hour,over K = 0,servers idle,decoding,trainer idle,staleness,at most".split(",")


def show_rollouts(found: Rollouts) -> str:
    """For a person, in Markdown."""
    rows = [_row(found, one) for one in found.settings]
    return "\n\n".join([head(found.plan), markdown_table(COLUMNS, rows), _bounds(found), _bought(found)])


def rollouts_as_json(found: Rollouts) -> str:
    settings = [
        asdict(one.setting)
        | {key: value for key, value in vars(one).items() if key != "setting"}
        | {"steps_per_hour": one.steps_per_hour, "gain": found.gain(one)}
        for one in found.settings
    ]
    about = {"run": found.plan.config.run.name, "gpus": found.plan.gpus, "gpu": found.plan.machine.name}
    alone = {"servers_alone_s": found.servers_alone_s, "trainer_alone_s": found.trainer_alone_s}
    return json.dumps(about | alone | {"settings": settings}, indent=1)


def _row(found: Rollouts, one: Simulated) -> list[str]:
    setting = one.setting
    more = {"max_age": setting.max_age, "order_window": setting.order_window}
    return [
        ", ".join([str(setting.max_staleness), *(f"{key} {value}" for key, value in more.items() if value)]),
        f"{setting.over_sampling:g}",
        f"{one.step_s:.1f}",
        f"{one.steps_per_hour:.1f}",
        f"{found.gain(one):.2f}",
        f"{one.servers_idle:.0%}",
        f"{one.decoding:.0f}",
        f"{one.trainer_idle:.0%}",
        f"{one.staleness_mean:.2f}",
        str(one.staleness_max),
    ]


def _bounds(found: Rollouts) -> str:
    bound = max(found.servers_alone_s, found.trainer_alone_s)
    return (
        f"K is rollout.max_staleness; decoding: sequences that a server has at a time; staleness: updates, mean over "
        f"tokens. No step is shorter than the servers' own work, {found.servers_alone_s:.1f} s, or the trainer's, "
        f"{found.trainer_alone_s:.1f} s: at most {found.settings[0].step_s / bound:.2f} times the steps of K = 0."
    )


def _bought(found: Rollouts) -> str:
    """What each K adds to the one before, and over-sampling to each."""
    plain = [one for one in found.settings if one.setting.over_sampling == 1 and not one.setting.max_age]
    lines = []
    for before, one in zip(plain, plain[1:], strict=False):
        line = f"- K = {one.setting.max_staleness}: {_more(before, one)} than K = {before.setting.max_staleness}"
        same = [each for each in found.settings if each.setting.max_staleness == one.setting.max_staleness]
        more = [each for each in same if each.setting.over_sampling > 1 and not each.setting.max_age]
        line += "".join(f"; over_sampling: {each.setting.over_sampling:g} {_more(one, each)}" for each in more)
        lines.append(f"{line}.")
    return "\n".join(lines)


def _more(before: Simulated, after: Simulated) -> str:
    gain = before.step_s / after.step_s - 1
    return f"{abs(gain):.0%} {'more' if gain >= 0 else 'fewer'} steps" if abs(gain) >= 0.005 else "as many steps"
