"""Cases run side by side; what ends one of them is its own failure, and the others go on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace

from scripts.gpu.checks.children import Children
from scripts.gpu.checks.result import Check, Skipped


@dataclass(frozen=True)
class Case:
    """One or more checks that share their work. `run` may raise: Skipped, or whatever is then a failed check."""

    section: str
    name: str
    run: Callable[[], Check | list[Check]]


def run_all(cases: Sequence[Case], children: Children, told: Callable[[list[Check]], None]) -> list[Check]:
    """The checks of all cases, in their order; `told` hears of all that are known as often as a case ends.

    Interrupted, it leaves no child behind.
    """
    found: dict[Case, list[Check]] = {}
    pool = ThreadPoolExecutor(max(1, len(cases)))  # threads wait: how many children run is decided by Children
    try:
        futures = {pool.submit(checks_of, case): case for case in cases}
        for future in as_completed(futures):
            found[futures[future]] = future.result()
            told([check for case in cases for check in found.get(case, [])])
    except BaseException:
        children.end()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return [check for case in cases for check in found[case]]


def checks_of(case: Case) -> list[Check]:
    """What the case found; of one that raised, a check that failed, or was skipped."""
    try:
        checks = case.run()
    except Skipped as why:
        checks = Check(case.name, f"skipped: {why}", "", None)
    except Exception as error:
        said = str(error).strip().splitlines() or [""]
        checks = Check(case.name, f"{type(error).__name__}: {said[-1]}", "", False)
    checks = checks if isinstance(checks, list) else [checks]
    return [replace(check, section=case.section) for check in checks]
