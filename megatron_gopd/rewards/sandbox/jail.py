"""Where programs run: less free than the referee that starts them, counted, and ended with all they have started."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass

from megatron_gopd.config.schema import Sandbox
from megatron_gopd.rewards.sandbox import seccomp, usage, view
from megatron_gopd.rewards.sandbox.processes import descendants, kill_descendants, send

if sys.platform == "linux":
    from megatron_gopd.rewards.sandbox import linux

OPEN_FILES = 64
QUEUED_SIGNALS = 256  # and timers
MEBIBYTE = 1 << 20


class SandboxError(RuntimeError):
    """The kernel refuses to build the sandbox; no program has run."""


@dataclass
class Jail:
    """Where the referee finds itself; it starts programs that are less free than itself."""

    settings: Sandbox
    folder: str  # with the files that programs are made of
    packages: str  # and the packages that they can import
    scratch: str  # where programs start and may write
    uid: int | None  # they run as; None: as this process
    alone: bool  # in namespaces: every process it sees, but itself, is a program's
    started: bool = False  # a program; what fails from then on may be its doing

    def confine(self) -> None:
        """Called by a child of the referee before it runs what is not ours."""
        for name, limit in self._limits().items():
            number = getattr(resource, name, None)  # not every system has every limit
            if number is not None:
                hard = resource.getrlimit(number)[1]
                limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
                resource.setrlimit(number, (limit, limit))
        if sys.platform == "linux":
            linux.prefer_to_kill()
            linux.drop_bounding_set()
        if self.uid is not None:
            os.setgroups([])
            os.setresgid(self.uid, self.uid, self.uid)
            os.setresuid(self.uid, self.uid, self.uid)
        if sys.platform == "linux":
            linux.die_with_parent()
            linux.drop_capabilities()
            linux.forbid_new_privileges()
            linux.filter_calls(seccomp.program())

    def give(self, descriptor: int) -> None:
        """Let a program open this file or pipe again by its name, such as /dev/stdin: to that user it is another's."""
        if self.uid is not None:
            os.fchown(descriptor, self.uid, -1)

    def clean(self) -> None:
        """End what the last program left running, and empty its folders."""
        self.end_programs()
        if self.alone:
            view.empty_scratch(self.settings.scratch_mb * MEBIBYTE, self.owner)

    @property
    def owner(self) -> int:
        return os.getuid() if self.uid is None else self.uid

    def programs(self) -> list[int]:
        """The processes in here, but this one."""
        if self.alone:
            return [int(name) for name in os.listdir("/proc") if name.isdigit() and name != "1"]
        return descendants(os.getpid())

    def end_programs(self) -> None:
        """Kill every process but this one, and wait until they are gone."""
        with suppress(ChildProcessError):  # no child is left
            while True:
                if self.alone:
                    send(-1, signal.SIGKILL)
                else:
                    kill_descendants(os.getpid())
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
                time.sleep(0.0005)

    def processor_seconds(self) -> float:
        """Of all programs so far."""
        return usage.processor_seconds(self.programs())

    def has_too_much_memory(self) -> bool:
        """All programs together, with the files in /tmp and /dev/shm."""
        limit = self.settings.memory_mb * MEBIBYTE - (view.file_bytes() if self.alone else 0)
        return usage.memory_bytes(self.programs(), limit) > limit

    def _limits(self) -> dict[str, int]:
        settings = self.settings
        return {
            "RLIMIT_AS": settings.memory_mb * MEBIBYTE,
            "RLIMIT_CPU": int(settings.seconds) + 1,
            "RLIMIT_NPROC": settings.processes,
            "RLIMIT_FSIZE": settings.scratch_mb * MEBIBYTE,
            "RLIMIT_NOFILE": OPEN_FILES,
            "RLIMIT_SIGPENDING": QUEUED_SIGNALS,
            "RLIMIT_CORE": 0,
            "RLIMIT_MEMLOCK": 0,
            "RLIMIT_MSGQUEUE": 0,
        }
