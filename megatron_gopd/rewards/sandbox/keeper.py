"""The processes around a program: worker > keeper, which enters the namespaces > referee, which starts programs."""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from megatron_gopd.config.schema import Sandbox
from megatron_gopd.rewards.sandbox import imports, memory_cgroup, seccomp, view
from megatron_gopd.rewards.sandbox.jail import MEBIBYTE, Jail, SandboxError
from megatron_gopd.rewards.sandbox.processes import kill_descendants, send
from megatron_gopd.rewards.sandbox.users import OWN_UID, uid_of_programs

if sys.platform == "linux":
    from megatron_gopd.rewards.sandbox import linux

GRACE_S = 5.0  # after the time of all tests, for the referee to notice and to answer

Work = Callable[[Jail], dict]


def in_jail(work: Work, files: dict[str, str], held_bytes: int, settings: Sandbox) -> dict:
    """Call `work` in a new process inside the sandbox and return its answer (plain JSON values).

    files: name -> text, which programs can read in `Jail.folder`; held_bytes: of what else is kept for them there.
    Raises SandboxError, and TimeoutError where nothing came back in time.
    """
    _look_around()
    if settings.isolation == "limits":
        with TemporaryDirectory(prefix="sandbox-", ignore_cleanup_errors=True) as folder:
            return _in_child(lambda writing: _limited(work, files, settings, folder, writing), settings)
    total = held_bytes + sum(len(text.encode(errors="replace")) for text in files.values())
    memory = settings.memory_mb * MEBIBYTE + total
    before = memory_cgroup.kills()
    answer = _in_child(lambda writing: _keep(work, files, memory, settings, writing), settings)
    if answer["problem"] and memory_cgroup.kills() > before:
        where = answer["problem"].partition(": ")[0]  # a crash is the referee's: it goes first where it is the largest
        answer["problem"] = "too much memory" if where == "crash" else f"{where}: too much memory"
    return answer


def _look_around() -> None:
    """What is the same for all processes to come is found out here, and once."""
    imports.foreign_packages(len(sys.modules))
    try:
        if sys.platform == "linux":
            seccomp.program()
            view.layout()
    except OSError as error:
        raise SandboxError(str(error)) from None


def _in_child(keep: Callable[[int], None], settings: Sandbox) -> dict:
    """What a forked child writes to the pipe it is given."""
    reading, writing = os.pipe()
    keeper = os.fork()
    if not keeper:
        os.close(reading)
        _run_and_exit(lambda: keep(writing), writing)
    os.close(writing)
    try:
        answer = _read_all(reading, time.monotonic() + settings.wall_seconds + GRACE_S)
    except BaseException:
        if settings.isolation == "limits":
            kill_descendants(keeper)
        send(keeper, signal.SIGKILL)  # PID 1 of the namespace goes with it, and everything in there with PID 1
        raise
    finally:
        os.close(reading)
        os.waitpid(keeper, 0)
    if "refused" in answer:
        raise SandboxError(answer["refused"])
    return answer


def _keep(work: Work, files: dict[str, str], memory: int, settings: Sandbox, writing: int) -> None:
    """The process between the worker and the referee: enters the namespaces its child is born into."""
    os.setsid()
    if sys.platform != "linux":
        raise OSError(f"{sys.platform} has no namespaces")
    uid = uid_of_programs()
    memory_cgroup.join(memory)
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


def _referee(work: Work, files: dict[str, str], settings: Sandbox, uid: int | None, writing: int) -> None:
    """PID 1 of the namespace: no program in it can signal this process or read its memory."""
    linux.hide_memory()
    packages = view.enter(files, settings.scratch_mb * MEBIBYTE, os.getuid() if uid is None else uid)
    _let_work(work, Jail(settings, view.FOLDER, packages, view.SCRATCH, uid, alone=True), writing)


def _limited(work: Work, files: dict[str, str], settings: Sandbox, folder: str, writing: int) -> None:
    """Without namespaces: the files lie in a temporary folder, and orphans come to this process."""
    if sys.platform == "linux":
        linux.adopt_orphans()
        linux.hide_memory()
    uid = uid_of_programs()
    view.write(files, folder)
    packages = Path(folder, "packages")
    packages.mkdir()
    for package in view.packages():
        (packages / package.name).symlink_to(package)
    scratch = Path(folder, "scratch")
    scratch.mkdir()
    os.chmod(folder, 0o755)
    if uid is not None:
        os.chown(scratch, uid, uid)
    os.chdir(scratch)
    jail = Jail(settings, folder, str(packages), str(scratch), uid, alone=False)
    try:
        _let_work(work, jail, writing)
    finally:
        jail.end_programs()


def _let_work(work: Work, jail: Jail, writing: int) -> None:
    """Raises OSError before a program has started: this machine cannot. What fails later is the answer's problem."""
    imports.keep_to(jail.packages)
    try:
        answer = work(jail)
    except Exception as error:
        if isinstance(error, OSError) and not jail.started:
            raise
        answer = {"problem": f"crash: {type(error).__name__}: {error}"[:200]}
    _answer(writing, answer)


def _run_and_exit(function: Callable[[], None], writing: int) -> None:
    """The whole life of a forked child: nothing of the parent's stack runs on."""
    try:
        if sys.platform == "linux":
            linux.die_with_parent()
        signal.setitimer(signal.ITIMER_REAL, 0)
        for each in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}:
            signal.signal(each, signal.SIG_DFL)  # to process 1 of a namespace, only a handler lets a signal through
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
