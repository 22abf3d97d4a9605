"""Whether a run is healthy: lights, each with the figures that it rests on.

The bounds are rules of thumb; the page tells the figures, so that a person can judge otherwise.
"""

from __future__ import annotations

from statistics import fmean, median

from megatron_gopd.view.lights import Ends, Light, State, judged, too_few
from megatron_gopd.view.run import Run

DISTANCES = {"target_kl": "KL to target", "reverse_kl": "reverse KL", "loss": "loss"}  # the first that a run has
PHASES = ("rollout", "score", "grade", "train", "sync", "checkpoint")
WAITS = {"rollout": "waiting for responses", "score": "waiting for scores"}  # what of a phase is told apart


def lights(run: Run, clipped: tuple[int, int] | None = None) -> list[Light]:
    """The lights of one run.

    Args:
        clipped: of the kept tokens, how many rollout corrections are at their cap, and of how many; None: not kept.
    """
    return [
        _progress(run),
        _learning(run),
        _reward(run),
        _length(run),
        _truncation(run),
        _entropy(run),
        _engine_gap(run),
        _teachers(run),
        _corrections(run, clipped),
        _time(run),
    ]


def _progress(run: Run) -> Light:
    of = f"{run.done} of {run.asked} steps" if run.asked else f"{run.done} steps"
    if run.finished:
        return Light("progress", "good", f"finished: {of}, and the model is there")
    if run.seems_alive:
        return Light("progress", "good", f"under way: {of}; the newest row is fresh")
    why = f"; the log ends with {run.last_error}" if run.last_error else ""
    if "StoppedError" in why:
        return Light("progress", "watch", f"stopped where it can go on: {of}{why}")
    return Light("progress", "bad", f"unfinished, and no step came lately: {of}{why}")


def _learning(run: Run) -> Light:
    """The divergence from what is aimed at; without teachers the loss, unless a reward tells more."""
    metric = next((metric for metric in DISTANCES if run.has(metric)), "reverse_kl")
    name = DISTANCES[metric]
    values = run.series(metric)
    ends = Ends.of(values)
    if metric == "loss" and run.has("reward"):
        return Light("reverse KL", "unknown", "no teacher scores these tokens; see the reward")
    if ends is None:
        return too_few(name, metric, values)
    if ends.moved == "rose":
        return Light(name, "bad", f"rose: {ends.told()}", metric)
    lowest = min(fmean(values[at : at + ends.steps]) for at in range(len(values) - ends.steps + 1))
    if ends.last > lowest + max(4 * ends.error, 0.5 * abs(ends.first - lowest)):
        beyond = " (λ above 1 aims beyond the teacher)" if metric == "reverse_kl" and _beyond(run) else ""
        return Light(name, "watch", f"fell to {lowest:.3g} and has risen since: {ends.told()}{beyond}", metric)
    if ends.moved == "stayed":
        return Light(name, "watch", f"did not fall by more than its errors: {ends.told()}", metric)
    for teacher in (each for each in run.names if each.startswith("reverse_kl/")):
        of_teacher = Ends.of(run.series(teacher))
        if of_teacher and of_teacher.moved == "rose":
            who = teacher.partition("/")[2]
            return Light(name, "watch", f"fell: {ends.told()}, but {who}'s rose: {of_teacher.told()}", teacher)
    return Light(name, "good", f"fell: {ends.told()}", metric)


def _beyond(run: Run) -> bool:
    lambda_ = run.setting("algorithm.lambda")
    return isinstance(lambda_, int | float) and lambda_ > 1


def _reward(run: Run) -> Light:
    def judge(ends: Ends) -> State:
        return {"rose": "good", "stayed": "good", "fell": "bad"}[ends.moved]

    return judged(run, "reward", "reward", judge, "{moved}: {told}", absent="nothing is graded")


def _length(run: Run) -> Light:
    def judge(ends: Ends) -> State:
        ratio = ends.last / max(ends.first, 1e-9)
        return "bad" if ratio > 2 else "watch" if ratio > 1.5 or ratio < 0.5 else "good"

    return judged(run, "length", "response_tokens_mean", judge, "tokens a response: {told}", ".4g")


def _truncation(run: Run) -> Light:
    def judge(ends: Ends) -> State:
        return "bad" if ends.last > 0.25 else "watch" if ends.last > 0.05 else "good"

    limit = run.setting("rollout.max_response_tokens")
    at = f" at {limit} tokens" if isinstance(limit, int) else ""
    return judged(run, "truncation", "truncated_fraction", judge, f"cut off{at}: {{told}}", ".1%")


def _entropy(run: Run) -> Light:
    def judge(ends: Ends) -> State:
        ratio = ends.last / max(ends.first, 1e-9)
        return "bad" if ratio < 0.1 or ratio > 4 else "watch" if ratio < 0.3 or ratio > 2 else "good"

    return judged(run, "entropy", "entropy", judge, "nats a token: {told}")


def _engine_gap(run: Run) -> Light:
    """Precision alone makes 0.01 to 0.1 nats; an older policy adds to it."""

    def judge(ends: Ends) -> State:
        return "bad" if ends.last > 0.15 else "watch" if ends.last > 0.05 else "good"

    stale = fmean(run.series("staleness_mean")[-20:] or [0])
    older = f"; the policy that sampled is {stale:.2g} updates older" if stale else ""
    told = f"nats a token between trainer and engine: {{told}}{older}"
    metric = "train_rollout_logprob_abs_diff"
    return judged(run, "engine gap", metric, judge, told, absent="no engine sampled what is learned")


def _teachers(run: Run) -> Light:
    """A teacher's share of the tokens, beside an equal one."""
    shares = {name.partition("/")[2]: run.series(name) for name in run.names if name.startswith("teacher_tokens/")}
    named = run.setting("teachers")
    every = list(dict.fromkeys([*(named if isinstance(named, dict) else ()), *shares]))
    if not shares:
        return Light("teachers", "unknown", "the metrics do not tell their shares")
    # a step without a teacher has no row of it
    mean = {name: sum(shares.get(name, [])) / len(run.trained) for name in every}
    name = min(mean, key=mean.__getitem__)
    told = ", ".join(f"{each} {share:.0%}" for each, share in mean.items())
    relative = mean[name] * len(every)
    state: State = "bad" if relative < 0.05 else "watch" if relative < 0.25 else "good"
    said = f"{name} is starved: " if state != "good" else ""
    return Light("teachers", state, f"{said}of the response tokens: {told}", f"teacher_tokens/{name}")


def _corrections(run: Run, clipped: tuple[int, int] | None) -> Light:
    if run.has("clip_fraction"):

        def judge(ends: Ends) -> State:
            return "bad" if ends.last > 0.5 else "watch" if ends.last > 0.2 else "good"

        return judged(run, "clipped", "clip_fraction", judge, "of the tokens: {told}", ".1%")
    if clipped is None:
        return Light("corrections", "unknown", "no kept response has a rollout correction")
    count, tokens = clipped
    share = count / max(tokens, 1)
    state: State = "bad" if share > 0.05 else "watch" if share > 0.01 else "good"
    return Light(
        "corrections", state, f"{share:.2%} of {tokens:,} kept tokens are at the cap of the rollout correction"
    )


def _time(run: Run) -> Light:
    """Where a step's seconds go, medians; and whether steps grow longer."""
    step = run.series("timing/step_s")
    if not step:
        return Light("time", "unknown", "the metrics do not tell it")
    seconds = phases(run)
    whole = sum(seconds.values())
    told = ", ".join(f"{name} {value / whole:.0%}" for name, value in seconds.items() if value >= 0.005 * whole)
    ends = Ends.of(step[1:])  # the first compiles and warms up
    grown = bool(ends) and ends.last > 1.5 * ends.first and ends.moved == "rose"
    slower = f"; steps grow longer: {ends.told()}" if grown else ""
    state: State = "watch" if grown or seconds.get("other", 0) > 0.25 * whole else "good"
    return Light("time", state, f"{whole:.3g} s a step: {told}{slower}", "timing/step_s")


def phases(run: Run) -> dict[str, float]:
    """{phase: median seconds of a step and of the checkpoint after it}, `other` being what no phase accounts for."""
    found = {}
    for name in (phase for phase in PHASES if run.has(f"timing/{phase}_s")):
        found[name] = median(run.series(f"timing/{name}_s"))
        if name in WAITS and run.has(metric := f"timing/wait_for_{name}_s"):
            found[WAITS[name]] = min(found[name], median(run.series(metric)))
            found[name] -= found[WAITS[name]]
    step = run.series("timing/step_s")
    rest = median(step) - sum(found[name] for name in found if name != "checkpoint") if step else 0.0
    return found | ({"other": rest} if rest > 0 else {})
