"""torchrun, but that what goes wrong is one line and not a traceback of its own: python launch/agent.py FLAGS ..."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from pathlib import Path

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.run import main

from oneflow_dist.runtime import LOST_PEER


def run() -> int:
    """The exit code: of the rank that failed first, or 128 + the signal that was passed on to the ranks."""
    # Of formats; of exit codes, before our own line; with a traceback, of a node that ends well before this one.
    for name in ("multiprocessing.errors.error_handler", "multiprocessing.api", "agent.server.api"):
        logging.getLogger(f"torch.distributed.elastic.{name}").disabled = True
    try:
        main()
    except SignalException as error:
        return 128 + int(error.sigval)
    except ChildFailedError as error:
        rank, failure = cause_of(error)
        if not is_known(rank, failure):
            say(f"rank {rank} on {socket.gethostname()}: {failure.message}")
        return failure.exitcode if failure.exitcode > 0 else 1
    except (dist.DistError, RendezvousError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        text = f"{socket.gethostname()}: the nodes of this launch do not find each other, or one has gone ({reason})"
        say(f"{text}; see whether all of them reach --master-addr, and what the output of each says")
        return 1
    return 0


def cause_of(error: ChildFailedError) -> tuple[int, ProcessFailure]:
    """Of the ranks that have failed here the first, but rather one that was killed than one that has missed it.

    SIGTERM is what torchrun itself has sent to those that were left.
    """
    first, failure = error.get_first_failure()
    killed = [rank for rank, of_rank in error.failures.items() if of_rank.exitcode < 0]
    killed = [rank for rank in killed if error.failures[rank].exitcode != -signal.SIGTERM]
    if killed and LOST_PEER in failure.message:
        return killed[0], error.failures[killed[0]]
    return first, failure


def is_known(rank: int, failure: ProcessFailure) -> bool:
    """Whether the console has it already, since rank 0 is there, or nothing is known but the exit code."""
    if failure.exitcode < 0:  # a rank that was killed has said nothing
        return False
    if rank == 0 or not Path(failure.error_file).exists():
        return True
    folder = os.environ.get("ONEFLOW_ATTEMPT")
    said_by_first = Path(folder, "verdict-0.json") if folder else None
    return said_by_first is not None and said_by_first.exists() and failure.message in said_by_first.read_text()


def say(message: str) -> None:
    """What went wrong, on the console."""
    print(f"error: {message.splitlines()[0]}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(run())
