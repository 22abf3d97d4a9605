"""A plan as a picture: the timeline of a step, and what fills a GPU in each phase. SVG, PNG, and one HTML page."""

from __future__ import annotations

import html
from pathlib import Path

from megatron_gopd.plan.hardware import GIB
from megatron_gopd.plan.planned import Plan
from megatron_gopd.plan.report import show
from megatron_gopd.runs.atomic import write_text

COLOURS = ["#4c78a8", "#f58518", "#54a24b", "#e45756", "#72b7b2", "#b279a2", "#9d755d", "#bab0ac"]


def draw(plan: Plan, folder: Path) -> list[Path]:
    """Write plan.svg, plan.png and plan.html into `folder`; returns their paths."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 5.2), height_ratios=[1.1, 2], layout="constrained")
    figure.suptitle(f"{plan.config.run.name} on {plan.gpus} x {plan.machine.name}, {plan.where.kind}", fontsize=11)
    _timeline(above, plan)
    _bars(below, plan)
    paths = [folder / f"plan.{kind}" for kind in ("svg", "png")]
    for path in paths:
        figure.savefig(path, dpi=130)
    plt.close(figure)
    page = folder / "plan.html"
    write_text(page, _page(plan, paths[0].read_text()))
    return [*paths, page]


def _timeline(axes, plan: Plan) -> None:
    """Rollout on one line, the trainer on another: side by side where they overlap."""
    time = plan.time
    apart = plan.where.kind in ("split", "disjoint")
    scored = sum(time.score.values())
    begin = time.rollout - min(time.overlapped, scored) if apart else time.rollout
    blocks = [("rollout", 0.0, time.rollout, 1 if apart else 0)]
    for name, seconds in time.score.items():
        blocks.append(
            (
                f"score {name.removeprefix('teachers.').replace('the reference of teachers.', 'reference of ')}",
                begin,
                seconds,
                0,
            )
        )
        begin += seconds
    begin = max(begin, time.step - time.update - time.sync)
    blocks += [("update", begin, time.update, 0), ("sync", begin + time.update, time.sync, 0)]
    for index, (name, start, seconds, line) in enumerate(blocks):
        axes.barh(
            line, seconds, left=start, color=COLOURS[index % len(COLOURS)], label=f"{name} {seconds:.1f} s", height=0.6
        )
    axes.set_yticks([0, 1] if apart else [0], ["trainer", "servers"] if apart else ["GPUs"])
    axes.set_xlabel(f"seconds; a step takes {time.step:.1f}", fontsize=9)
    axes.set_xlim(0, time.step * 1.01)
    axes.legend(fontsize=7, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.45), frameon=False)


def _bars(axes, plan: Plan) -> None:
    whats = list(dict.fromkeys(what for phase in plan.phases for what, size in phase.parts.items() if size))
    colours = {what: COLOURS[index % len(COLOURS)] for index, what in enumerate(whats)}
    for line, phase in enumerate(reversed(plan.phases)):
        left = 0.0
        for what, size in phase.parts.items():
            axes.barh(line, size / GIB, left=left, color=colours.get(what, "#cccccc"), height=0.6)
            left += size / GIB
        axes.text(left, line, f" {left:.1f}", va="center", fontsize=8)
    axes.axvline(plan.machine.usable_bytes / GIB, color="black", linestyle="--", linewidth=1)
    names = [f"{phase.name}\n(rank {plan.fullest[phase.name]})" for phase in reversed(plan.phases)]
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel(f"GiB on the fullest GPU; dashed: {plan.machine.usable_bytes / GIB:.1f} usable", fontsize=9)
    handles = [axes.barh(0, 0, color=colour, label=what) for what, colour in colours.items()]
    axes.legend(handles=handles, fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)


def _page(plan: Plan, svg: str) -> str:
    picture = svg[svg.index("<svg") :]
    style = "body{font:15px/1.5 sans-serif;margin:2em auto;max-width:1000px} pre{overflow-x:auto;padding:1em}"
    title = html.escape(f"Plan of {plan.config.run.name} on {plan.gpus} x {plan.machine.name}")
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{title}</title><style>{style}</style>"
        f"</head><body><h1>{title}</h1>{picture}<pre>{html.escape(show(plan))}</pre></body></html>\n"
    )
