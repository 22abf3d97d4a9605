"""The ranks of this job: one process alone, or those torchrun or srun started."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import os
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist

from megatron_gopd import machine, objects
from megatron_gopd.errors import StoppedError, UserError, disk_errors
from megatron_gopd.gpu_of_rank import check_gpus, take_gpu
from megatron_gopd.runs.outcome import leave_the_last_word, tell_outcome, write_outcome
from megatron_gopd.srun import adopt_srun
from megatron_gopd.terminal import say

Result = TypeVar("Result")
TIMEOUT_S = 1800.0  # after which a rank gives up waiting for the others, of the job or of a model


@contextlib.contextmanager
def ranks(timeout_s: float = TIMEOUT_S, *, compare_gpus: bool = True) -> Iterator[None]:
    """The default process group, for the time of a command; alone, nothing to set up.

    Objects and what lies in host memory travel by gloo, what lies on a GPU by NCCL: a rank that waits for an object, as
    for a whole rollout, sleeps, and leaves its GPU to the servers that may share it.

    `compare_gpus`: refuse ranks that have no GPU, or share one (gpu_of_rank.check_gpus).

    An exception on any rank is reported by the first rank that meets one; the others leave in silence, so that a
    peer's lost connection does not bury the cause. A UserError ends the process with its exit code, 2; a StoppedError,
    which all ranks raise together, is told by rank 0. How it all ended is written by one rank, where a job script asks
    for it (runs/outcome.py). After `timeout_s` a rank gives up waiting for the others.
    """
    adopt_srun()
    take_gpu()
    _join(timeout_s)
    try:
        with disk_errors():
            if compare_gpus:
                check_gpus()
            yield
    except StoppedError as error:
        if dist.get_rank() == 0:
            tell_outcome(error)
        dist.barrier()  # launchers end all ranks at the first that ends
        dist.destroy_process_group()
        raise SystemExit(error.exit_code) from None
    except UserError as error:
        if _is_first_to_report():
            tell_outcome(error)
        if dist.get_world_size() == 1:
            dist.destroy_process_group()
        else:
            _end_without_teardown(error.exit_code)
        raise SystemExit(error.exit_code) from None
    except Exception as error:
        first = _is_first_to_report()
        if dist.get_world_size() > 1:
            _end_without_teardown(1)
        if not first:
            raise SystemExit(1) from None
        write_outcome(1, "failed", f"{type(error).__name__}: {error}")
        raise
    if dist.get_rank() == 0:
        write_outcome(0, "finished")
    dist.destroy_process_group()


def _end_without_teardown(exit_code: int) -> None:
    """For a process whose group stays, as peers may hang in a collective: they are ended, not waited for.

    A thread of gloo that lets go of a tensor while the interpreter is torn down would abort the process.
    """
    atexit.register(_end, exit_code)


def _end(exit_code: int) -> None:
    atexit.unregister(_end)
    atexit._run_exitfuncs()  # all else that is to run
    with contextlib.suppress(OSError):  # nobody reads
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(exit_code)


def _join(timeout_s: float) -> None:
    alone = {} if "WORLD_SIZE" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    try:
        dist.init_process_group(_backends(), timeout=datetime.timedelta(seconds=timeout_s), **alone)
    except RuntimeError as error:
        said = str(error).strip().splitlines()[0]
        say(
            f"error: the ranks do not reach each other: {said}. Name the network between the nodes in "
            f"GLOO_SOCKET_IFNAME (and NCCL_SOCKET_IFNAME on GPUs), as `ip -br address` lists it",
            file=sys.stderr,
        )
        raise SystemExit(2) from None


def give_back_memory() -> None:
    """What torch keeps of freed GPU memory goes back, on all ranks before any goes on. Collective."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    dist.barrier()


def _backends() -> str:
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def device_backend() -> str:
    """What carries tensors of this rank's device, NCCL or gloo: for groups that exchange nothing else, such as models'.

    A process group of both would keep connections and threads of gloo beside NCCL's, for each of a model's groups.
    """
    carried = dict(pair.split(":") for pair in dist.get_backend_config().split(","))
    return carried[machine.device().type]


def is_first() -> bool:
    """Whether this process is rank 0; true alone. Asks the environment before the process group stands."""
    return dist.get_rank() == 0 if dist.is_initialized() else os.environ.get("RANK", "0") == "0"


def on_first(function: Callable[[], Result], group: dist.ProcessGroup | None = None) -> Result:
    """Call `function` on the first rank of `group` (default: of the job); every rank of it gets its result, or the
    UserError it raised. Collective over the group; among all ranks of the job, those that wait sleep.
    """
    answer, mistake = None, None
    if dist.get_rank(group) == 0:
        try:
            answer = function()
        except UserError as error:
            mistake = error
    answer, mistake = objects.broadcast((answer, mistake), group=group)
    if mistake is not None:
        raise mistake
    return answer


def take_number(of: str) -> int:
    """0, 1, 2, ...: each number goes to one caller in the whole job, the next that asks. Not collective; any thread
    may call. `of`: what is numbered.

    Raises RuntimeError: the rank that keeps count is gone, and the job with it.
    """
    return dist.distributed_c10d._get_default_store().add(f"megatron_gopd/{of}", 1) - 1


def _is_first_to_report() -> bool:
    try:
        first = take_number("reported") == 0
    except RuntimeError:  # the store died with the rank that reported
        return False
    if not first:
        leave_the_last_word()
    return first
