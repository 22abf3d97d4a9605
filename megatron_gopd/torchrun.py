"""A rank that torchrun started, and that outlives torchrun's signal until it has saved.

torchrun hands SIGTERM and SIGINT on to the processes that it started, and kills them half a minute later, which is less
than a step and its checkpoint may take. So a rank runs behind the process that torchrun knows, in a group of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

import psutil

HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGQUIT)
PR_SET_PDEATHSIG = 1  # linux/prctl.h
_behind = False  # whether this process is such a rank


def run_behind_torchrun() -> None:
    """Under torchrun, fork: the child returns and is the rank. This process hands its signals on, and ends as it does.

    The rank is killed when this process is, until `outlive` says otherwise. To be called before there are threads.
    """
    global _behind
    if "TORCHELASTIC_RUN_ID" not in os.environ or not sys.platform.startswith("linux"):
        return
    sys.stdout.flush()
    sys.stderr.flush()
    front = os.getpid()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDED_ON)
    rank = os.fork()
    if rank == 0:
        os.setpgid(0, 0)
        _end_with_parent(signal.SIGKILL)
        _behind = True
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if os.getppid() != front:  # which has been killed already
            os._exit(1)
        return
    for number in HANDED_ON:
        signal.signal(number, lambda number, _: os.kill(rank, number))
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    _end_as(rank)


def outlive() -> None:
    """This rank goes on when torchrun kills the process before it; to be called in the main thread.

    Unless a sibling is gone: then torchrun ends the others because of it, and what is left would wait for it in vain.
    """
    if not _behind:
        return
    try:
        siblings = psutil.Process().parent().parent().children()
        alive = [each for each in siblings if each.status() != psutil.STATUS_ZOMBIE]
    except (psutil.Error, AttributeError):  # one has just ended, or torchrun has
        return
    if len(alive) >= int(os.environ["LOCAL_WORLD_SIZE"]):
        _end_with_parent(0)


def _end_with_parent(number: int) -> None:
    """The signal that this thread gets at the end of the process that forked it; 0: none."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


def _end_as(rank: int) -> None:
    """Wait for the process `rank`, and end with its exit code, or by its signal."""
    _, status = os.waitpid(rank, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)
