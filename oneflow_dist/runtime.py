"""The process: its device, its rank, and how it starts and ends."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from oneflow_dist.files import describe_os_error
from oneflow_dist.verdict import State, tell

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

GLOO = "gloo_in_order"  # see `_make_gloo`
LOST_PEER = "another rank has ended"


def start_process(data_workers: int = 0, deterministic: bool = False) -> torch.device:
    """Join the process group of torchrun, or be a group of one; returns this rank's device.

    Args:
        deterministic: the same bits in every run on the same devices; what cannot do that is an error.

    Raises:
        ValueError: WORLD_SIZE is set, and not all that belongs to it.
    """
    import torch
    import torch.distributed as dist

    share_cores(data_workers)
    register_gloo()
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # read when CUDA starts
        torch.use_deterministic_algorithms(True)
        # Filling every new buffer costs a write that nothing reads; the module's class makes this a property.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        backend = f"cpu:{GLOO},cuda:nccl"
    else:
        device, backend = torch.device("cpu"), GLOO
    if "WORLD_SIZE" in os.environ:
        if missing := [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
            raise ValueError(f"{', '.join(missing)}: not set, though WORLD_SIZE is; start ranks with torchrun")
        dist.init_process_group(backend)
        dist.all_reduce(torch.zeros(1))  # nobody goes on, and perhaps ends with an error, while another is joining
    else:
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    return device


def register_gloo() -> None:
    """Make GLOO a backend that torch.distributed knows."""
    import torch.distributed as dist

    dist.Backend.register_backend(GLOO, _make_gloo, extended_api=True, devices=["cpu"])


def _make_gloo(place: Any, _: Any) -> Any:
    """Gloo with one thread for the collectives of a group instead of two: in order, and without a race of torch's.

    Each of torch's threads assigns the name of the collective that it has ended to one string, without a lock. A name
    of more than 15 characters, as functional all-gathers and reduce-scatters have, is on the heap; where two threads
    are at it at once it is freed twice, and sooner or later malloc crashes (torch 2.13, ProcessGroupGloo::runLoop).

    Raises:
        ValueError: GLOO_SOCKET_IFNAME names a network interface that this machine has not.
    """
    from torch.distributed import ProcessGroupGloo

    names = [name for name in os.environ.get("GLOO_SOCKET_IFNAME", "").split(",") if name]
    there = [name for _, name in socket.if_nameindex()]
    for name in set(names).difference(there):
        raise ValueError(f"GLOO_SOCKET_IFNAME: this machine has no interface {name}; set one of {', '.join(there)}")
    devices = [ProcessGroupGloo.create_device(interface=name) for name in names]
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices, options._threads = devices or [ProcessGroupGloo.create_default_device()], 1
    options._timeout, options.group_name = place.timeout, place.group_id
    options.global_ranks_in_group = place.global_ranks_in_group
    return ProcessGroupGloo(place.store, place.group_rank, place.group_size, options)


def share_cores(others: int) -> None:
    """Compute with this rank's part of the cores, less one for each of `others`, the processes that it works beside.

    Threads that wait for a core that another process has taken can slow a run tenfold. OMP_NUM_THREADS overrides.
    """
    import torch

    if "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, cores - others))


def collect_garbage(step: int, every_steps: int) -> None:
    """Called after each step: collect Python's garbage after every so many and at no other time; 0 leaves it to Python.

    Else each rank collects when it likes, and all others wait for it.
    """
    if every_steps == 0:
        return
    if gc.isenabled():  # after the first step: the model and what was compiled stay, and need no look again
        gc.collect()
        gc.freeze()
        gc.disable()
    elif step % every_steps == 0:
        gc.collect()


@contextmanager
def any_algorithms() -> Iterator[None]:
    """Inside, deterministic mode is off: for what does not flow back into a run and has no deterministic algorithm."""
    import torch

    is_on = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(is_on)


def end_process() -> None:
    """Leave the process group, and the process with it when there are others.

    Ranks wait for each other, then skip the interpreter's shutdown, in which gloo's threads often abort.
    """
    import torch.distributed as dist

    several = dist.get_world_size() > 1
    dist.barrier()
    dist.destroy_process_group()
    if several:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def is_main() -> bool:
    """Whether this rank prints and writes for all; a process without a group does."""
    return os.environ.get("RANK", "0") == "0"


def node_name() -> str:
    """Of this machine, as whoever has started it calls it."""
    return os.environ.get("ONEFLOW_NODE") or os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def gather_objects(value: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """What each rank has, by rank; all of them call."""
    import torch.distributed as dist

    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, value, group=group)
    return found


def log(message: str) -> None:
    """Print a line on rank 0."""
    if is_main():
        print(message, flush=True)


def run_program(main: Callable[[], None]) -> None:
    """Call `main`; what a user can mend ends the program with one line and exit code 2, broken numbers with code 1."""
    try:
        main()
    except KeyboardInterrupt:
        _exit_with("interrupted", code=128 + signal.SIGINT, state="stopped")
    except OSError as error:
        _exit_with(describe_os_error(error), code=2)
    except ValueError as error:
        _exit_with(str(error), code=2)
    except FloatingPointError as error:
        _exit_with(str(error), code=1)
    except RuntimeError as error:
        if not _is_lost_peer(error):
            raise
        reason = (str(error).partition("] ")[2] or str(error)).partition(". This")[0]  # gloo's source, gloo's advice
        _exit_with(f"{LOST_PEER} or cannot be reached, its message tells why ({reason})", code=1, state=None)
    except _failed_checkpoint() as error:
        step, failures = error.args
        reasons = "; ".join(f"rank {rank}: {_describe_failure(reason)}" for rank, (reason, _) in failures.items())
        if step == "read":
            advice = "it is damaged: move its folder away to continue from the one before"
            _exit_with(f"a checkpoint could not be read: {reasons}; {advice}", code=2)
        advice = "make room and run the same command again: it continues from the last checkpoint"
        _exit_with(f"a checkpoint could not be written: {reasons}; {advice}", code=2)


def _is_lost_peer(error: RuntimeError) -> bool:
    """Whether a collective failed because a rank has gone: gloo tells it by a text alone."""
    import torch.distributed as dist

    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def _failed_checkpoint() -> Any:
    """What torch raises, on all ranks, when one of them cannot write or read its part of a checkpoint.

    Before anything has loaded torch's part for checkpoints, nothing can raise it; --help need not load it.
    """
    api = sys.modules.get("torch.distributed.checkpoint.api")
    return api.CheckpointException if api else ()


def _describe_failure(reason: BaseException) -> str:
    """What kept a rank from its part of a checkpoint; torch's archives tell a short write by their own counts alone."""
    if isinstance(reason, OSError):
        return describe_os_error(reason)
    if "inline_container" in str(reason) and "unexpected pos" in str(reason):
        return "its file ends too early: the disk is full, or a quota or a limit on the size of files is reached"
    return str(reason)


def _exit_with(message: str, code: int, state: State | None = "failed") -> NoReturn:
    rank = os.environ.get("RANK", "0")
    print(f"error: {message}" if rank == "0" else f"error (rank {rank}): {message}", file=sys.stderr, flush=True)
    if state is not None:
        with suppress(OSError):  # the disk may be what failed
            tell(state, message)
    report = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if report:  # launch/agent.py says what it finds here, and torchrun itself ends its forty lines with it
        Path(report).write_text(json.dumps({"message": message, "timestamp": int(time.time())}))
    os._exit(code)  # other threads and ranks may be waiting for us: do not wait for them
