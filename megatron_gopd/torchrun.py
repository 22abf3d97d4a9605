"""A rank that torchrun started, and that outlives torchrun's signal until it has saved.

torchrun hands SIGTERM and SIGINT on to the processes that it started, and kills them half a minute later, which is less
than a step and its checkpoint may take. So a rank runs behind the process that torchrun knows, in a group of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading

import psutil

HANDED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGQUIT)
ENDS = (signal.SIGINT, signal.SIGTERM)  # by which torchrun says that it will kill


def run_behind_torchrun() -> None:
    """Under torchrun, fork: the child returns and is the rank. This process hands its signals on, and ends as it does.

    The rank is killed when this process is, unless torchrun has said that the whole job is to end. To be called before
    there are threads.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HANDED_ON)
    heard, told = os.pipe()
    rank = os.fork()
    if rank == 0:
        os.setpgid(0, 0)
        os.close(told)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        threading.Thread(target=_end_when_abandoned, args=(heard,), daemon=True).start()
        return
    os.close(heard)

    def hand_on(number: int, _) -> None:
        if number in ENDS and _is_whole():
            with contextlib.suppress(OSError):
                os.write(told, b"go on")
        with contextlib.suppress(ProcessLookupError):
            os.kill(rank, number)

    for number in HANDED_ON:
        signal.signal(number, hand_on)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    _end_as(rank)


def _end_when_abandoned(heard: int) -> None:
    """In a thread: the main one may be waiting for other ranks."""
    if not os.read(heard, 1):  # the end of the process that holds the other end
        os.kill(os.getpid(), signal.SIGKILL)


def _is_whole() -> bool:
    """Whether all that this torchrun has started are there: it ends the others when one is not, and a rank that
    outlived this would wait for that one in vain."""
    try:
        alive = [each for each in psutil.Process().parent().children() if each.status() != psutil.STATUS_ZOMBIE]
        ranks = [each for each in alive if "TORCHELASTIC_RUN_ID" in each.environ()]
    except (psutil.Error, AttributeError):  # one has just ended, or torchrun has
        return False
    return len(ranks) >= int(os.environ["LOCAL_WORLD_SIZE"])


def _end_as(rank: int) -> None:
    """Wait for the process `rank`, and end with its exit code, or by its signal."""
    _, status = os.waitpid(rank, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)
