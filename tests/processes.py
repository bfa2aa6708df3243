"""Processes as /proc shows them, and waiting for what they do."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
PATIENCE = 240.0  # seconds, for what takes 1 to 20, on a busy machine 60


def wait_until(is_so: Callable[[], object], what: str, seconds: float = PATIENCE, pause: float = 0.01) -> float:
    """Wait for `what`, until `is_so`; returns the seconds that this took.

    Raises:
        TimeoutError: it takes too long.
    """
    start = time.monotonic()
    while not is_so():
        if time.monotonic() - start > seconds:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(pause)
    return time.monotonic() - start


def is_alive(pid: int) -> bool:
    """Whether a process runs or could; one that has ended may wait for its parent as a zombie."""
    status = _status(pid)
    return status != [] and status[0] != "Z"


def parent_of(pid: int) -> int:
    """The process that started it."""
    return int(_status(pid)[1])


def children(pid: int) -> list[int]:
    """The processes that it has started, by any of its threads, and that have not ended."""
    found = []
    with suppress(OSError):  # it ends meanwhile
        for task in (PROC / str(pid) / "task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def environment(pid: int) -> dict[str, str]:
    """What a process was started with; empty where it has ended."""
    return dict(line.split("=", 1) for line in _read_lines(pid, "environ") if "=" in line)


def is_rank(pid: int) -> bool:
    """Whether a process trains, and is not what starts those that do."""
    words = words_of(pid)
    return "oneflow_dist.train" in words and not any(word.startswith("launch/") for word in words)


def words_of(pid: int) -> list[str]:
    """The command that a process runs, or what it calls itself; empty where it has ended."""
    return _read_lines(pid, "cmdline")


def find_processes() -> list[int]:
    """All of this machine."""
    return [int(path.name) for path in PROC.glob("[0-9]*")]


def find_ranks() -> list[int]:
    """All that train."""
    return list(filter(is_rank, find_processes()))


def _status(pid: int) -> list[str]:
    """Its state, its parent and so on; empty where it has ended."""
    with suppress(OSError):
        return (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return []


def _read_lines(pid: int, name: str) -> list[str]:
    with suppress(OSError):
        return (PROC / str(pid) / name).read_text(errors="replace").split("\0")
    return []
