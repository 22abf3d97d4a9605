"""Does the response's program pass its tests? It runs in a sandbox."""

from __future__ import annotations

import subprocess
import sys

from megatron_gopd.config.schema import Sandbox
from megatron_gopd.errors import UserError
from megatron_gopd.rewards.code_block import last_code_block
from megatron_gopd.rewards.grade import Grade
from megatron_gopd.rewards.sandbox import SandboxError, judge
from megatron_gopd.rewards.tests import Stdio, parse_tests


def code(response: str, tests: str, sandbox: Sandbox) -> Grade:
    """1.0 when the last ```python block of the response passes all tests (JSON, see `parse_tests`), else 0.0.

    The grade's problem says which test failed, and how. Call this in a worker process: it forks.
    Raises UserError: tests that cannot be read. Raises SandboxError: the kernel refuses the sandbox.
    """
    program = last_code_block(response)
    if program is None:
        return Grade(0.0, "no code")
    problem = judge(program, parse_tests(tests), sandbox)
    return Grade(float(problem is None), problem)


def check_sandbox(sandbox: Sandbox) -> None:
    """Run a small program in the sandbox, from a process of its own. Raises UserError: what this machine lacks."""
    command = [sys.executable, "-m", "megatron_gopd.rewards.code", sandbox.model_dump_json()]
    probe = subprocess.run(command, capture_output=True, text=True, check=False)
    if probe.returncode:
        reason = (probe.stdout + probe.stderr).strip().rsplit("\n", 1)[-1]
        mend = (
            "; run as root or on a kernel (5.14 or newer) that lets users make namespaces (user.max_user_namespaces), "
            "give a container CAP_SYS_ADMIN, or, on a machine with nothing to lose, set sandbox.isolation: limits"
        )
        raise UserError(
            f"sandbox.isolation: {sandbox.isolation} does not work on this machine: {reason}"
            + (mend if sandbox.isolation == "namespaces" else "")
        )


def _probe(sandbox: Sandbox) -> str | None:
    try:
        return judge("print(input())", Stdio((("ready", "ready"),)), sandbox)
    except SandboxError as error:
        return str(error)


if __name__ == "__main__":
    sys.exit(_probe(Sandbox.model_validate_json(sys.argv[1])))
