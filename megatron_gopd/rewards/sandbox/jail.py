"""A process that answers can harm only from within: namespaces, limits, and another user."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from megatron_gopd.config.schema import Sandbox
from megatron_gopd.rewards.sandbox import view

if sys.platform == "linux":
    from megatron_gopd.rewards.sandbox import linux

UID, UIDS = 62_000, 2_000  # as root, the users that programs run as: one a worker, for RLIMIT_NPROC counts by user
OWN_UID = 1_000  # in a user namespace, what this process's user is called there
OPEN_FILES = 64
GRACE_S = 5.0  # after the time of all tests, for the referee to notice and to answer
MEBIBYTE = 1 << 20


class SandboxError(RuntimeError):
    """The kernel refuses to build the sandbox; no program has run."""


@dataclass(frozen=True)
class Jail:
    """Where the referee finds itself; it starts programs that are less free than itself."""

    settings: Sandbox
    folder: str  # with the files that programs are made of
    scratch: str  # where programs start and may write
    uid: int | None  # they run as; None: as this process
    alone: bool  # in namespaces: every process it sees, but itself, is a program's

    def confine(self) -> None:
        """Called by a child of the referee before it runs what is not ours."""
        for name, limit in self._limits().items():
            number = getattr(resource, name, None)  # not every system has every limit
            if number is not None:
                hard = resource.getrlimit(number)[1]
                limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
                resource.setrlimit(number, (limit, limit))
        if self.uid is not None:
            os.setgroups([])
            os.setresgid(self.uid, self.uid, self.uid)
            os.setresuid(self.uid, self.uid, self.uid)
        if sys.platform == "linux":
            linux.drop_capabilities()
            linux.forbid_new_privileges()

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

    def end_programs(self) -> None:
        """Kill every process but this one, and wait until they are gone."""
        with suppress(ChildProcessError):  # no child is left
            while True:
                self._kill_all()
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
                time.sleep(0.0005)

    def memory_in_use(self) -> int:
        """Bytes that all programs hold: resident pages, memory files, /dev/shm, System V segments."""
        if not self.alone:
            return 0  # RLIMIT_AS bounds each process; there is no telling whose the others are
        pages = sum(_resident(int(name)) for name in os.listdir("/proc") if name.isdigit() and name != "1")
        with suppress(OSError):
            for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]:
                pages += int(line.split()[3]) // resource.getpagesize()
        return pages * resource.getpagesize() + view.shared_bytes()

    def _limits(self) -> dict[str, int]:
        settings = self.settings
        return {
            "RLIMIT_AS": settings.memory_mb * MEBIBYTE,
            "RLIMIT_CPU": int(settings.seconds) + 1,
            "RLIMIT_NPROC": settings.processes,
            "RLIMIT_FSIZE": settings.scratch_mb * MEBIBYTE,
            "RLIMIT_NOFILE": OPEN_FILES,
            "RLIMIT_CORE": 0,
            "RLIMIT_MEMLOCK": 0,
            "RLIMIT_MSGQUEUE": 0,
        }

    def _kill_all(self) -> None:
        if self.alone:
            _kill(-1)
        elif self.uid is None:
            for process in psutil.Process().children(recursive=True):
                _kill(process.pid)
        elif child := os.fork():
            os.waitpid(child, 0)
        else:  # to that user, -1 is every process of that user
            os.setresuid(self.uid, self.uid, self.uid)
            _kill(-1)
            os._exit(0)


def in_jail(work: Callable[[Jail], dict], files: dict[str, str], settings: Sandbox) -> dict:
    """Call `work` in a new process inside the sandbox and return its answer (plain JSON values).

    files: name -> text, which programs can read in `Jail.folder`. Raises SandboxError, and TimeoutError where nothing
    came back in time.
    """
    if settings.isolation == "limits":
        with TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True) as folder:
            return _in_child(lambda writing: _limited(work, files, settings, folder, writing), settings)
    return _in_child(lambda writing: _keep(work, files, settings, writing), settings)


def _in_child(keep: Callable[[int], None], settings: Sandbox) -> dict:
    """What a forked child writes to the pipe it is given."""
    reading, writing = os.pipe()
    keeper = os.fork()
    if not keeper:
        os.close(reading)
        _run_and_exit(lambda: keep(writing), writing)
    os.close(writing)
    try:
        answer = _read_all(reading, time.monotonic() + settings.seconds + GRACE_S)
    except BaseException:
        _kill(keeper)  # PID 1 of the namespace goes with it, and everything in there with PID 1
        raise
    finally:
        os.close(reading)
        os.waitpid(keeper, 0)
    if "refused" in answer:
        raise SandboxError(answer["refused"])
    return answer


def _keep(work: Callable[[Jail], dict], files: dict[str, str], settings: Sandbox, writing: int) -> None:
    """The process between the worker and the referee: enters the namespaces its child is born into."""
    os.setsid()
    if sys.platform != "linux":
        raise OSError(f"{sys.platform} has no namespaces")
    uid = UID + os.getppid() % UIDS if os.getuid() == 0 else None
    _enter_namespaces(as_root=uid is not None)
    referee = os.fork()
    if not referee:
        _run_and_exit(lambda: _referee(work, files, settings, uid, writing), writing)
    os.close(writing)
    os.waitpid(referee, 0)


def _enter_namespaces(*, as_root: bool) -> None:
    flags = linux.NEW_MOUNTS | linux.NEW_UTS | linux.NEW_IPC | linux.NEW_PIDS | linux.NEW_NETWORK
    if as_root:
        linux.unshare(flags)
        return
    uid, gid = os.getuid(), os.getgid()
    linux.unshare(flags | linux.NEW_USER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{OWN_UID} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{OWN_UID} {gid} 1")


def _referee(work, files: dict[str, str], settings: Sandbox, uid: int | None, writing: int) -> None:
    """PID 1 of the namespace: no program in it can signal this process or read its memory."""
    linux.hide_memory()
    view.enter(files, settings.scratch_mb * MEBIBYTE, os.getuid() if uid is None else uid)
    jail = Jail(settings, view.FOLDER, view.SCRATCH, uid, alone=True)
    _answer(writing, work(jail))


def _limited(work, files: dict[str, str], settings: Sandbox, folder: str, writing: int) -> None:
    """Without namespaces: the files lie in a temporary folder, and orphans come to this process."""
    if sys.platform == "linux":
        linux.adopt_orphans()
    uid = UID + os.getppid() % UIDS if os.getuid() == 0 else None
    view.write(files, folder)
    Path(folder, "packages").mkdir()
    for package in view.packages():
        Path(folder, "packages", package.name).symlink_to(package)
    scratch = Path(folder, "scratch")
    scratch.mkdir()
    os.chmod(folder, 0o755)
    if uid is not None:
        os.chown(scratch, uid, uid)
    os.chdir(scratch)
    _answer(writing, work(Jail(settings, folder, str(scratch), uid, alone=False)))


def _run_and_exit(function: Callable[[], None], writing: int) -> None:
    """The whole life of a forked child: nothing of the parent's stack runs on."""
    try:
        if sys.platform == "linux":
            linux.die_with_parent()
        signal.setitimer(signal.ITIMER_REAL, 0)
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(each, signal.SIG_DFL)
        function()
    except OSError as error:
        _answer(writing, {"refused": str(error)})
    except BaseException as error:  # noqa: BLE001  a fork must not return
        _answer(writing, {"problem": f"crash: {type(error).__name__}: {error}"[:200]})
    finally:
        os._exit(0)


def _answer(writing: int, answer: dict) -> None:
    with suppress(OSError):
        os.write(writing, json.dumps(answer).encode()[:60_000])


def _read_all(reading: int, deadline: float) -> dict:
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
        raise TimeoutError
    text = os.read(reading, 65536)
    return json.loads(text) if text else {"problem": "crash: the referee died"}


def _resident(pid: int) -> int:
    """Pages of a process's memory and of the memory files it holds open."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        for entry in os.scandir(f"/proc/{pid}/fd"):
            if os.readlink(entry.path).startswith("/memfd:"):
                pages += os.stat(entry.path).st_blocks * 512 // resource.getpagesize()
    except OSError:  # it ended meanwhile
        return 0
    return pages


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
