"""torchrun, but that what goes wrong is one line and not a traceback of its own: python launch/agent.py FLAGS ..."""

from __future__ import annotations

import socket
import sys

import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.run import main


def run() -> int:
    """The exit code: of the rank that failed first, or 128 + the signal that was passed on to the ranks."""
    try:
        main()
    except SignalException as error:
        return 128 + int(error.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        say(f"rank {rank} on {socket.gethostname()}: {failure.message}")
        return failure.exitcode if failure.exitcode > 0 else 1
    except (dist.DistError, RendezvousError) as error:
        say(f"{socket.gethostname()}: the nodes of this launch do not find each other, or one has gone: {error}")
        return 1
    return 0


def say(message: str) -> None:
    """What went wrong, on the console."""
    print(f"error: {message.splitlines()[0]}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(run())
