"""What the scripts of launch/ have left in a run folder, and from it and the lock of the run: how it stands."""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

VERDICTS = ("failed", "finished", "stopped", "unfit", "hung")  # what would fail again counts most
SILENT_SECONDS = 600.0  # that a run on another machine, or one that loads, may say nothing
FIRST_BYTES = 2**18  # of a log: its first lines say how many ranks there are
FLOCK = "hhqqi4x"  # Linux's struct flock: type, whence, start, length, process


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One start of a run by launch/."""

    folder: Path
    table: dict[str, Any]  # of attempt.json
    state: str  # of `oneflow_dist.verdict`, or "died"; empty: it has not ended
    message: str

    def __getitem__(self, key: str) -> str:
        """A value of attempt.json; empty where it has none."""
        return str(self.table.get(key, ""))

    def read(self, name: str) -> str:
        """A file of the attempt; empty where it has none."""
        path = self.folder / name
        return path.read_text(errors="replace") if path.is_file() else ""


class Status(NamedTuple):
    """How a run stands, in one word and in a sentence."""

    state: str
    reason: str

    @property
    def is_going(self) -> bool:
        return self.state in ("running", "starting")


class Place(NamedTuple):
    """On what a run was last started, as rank 0 says in its log; 0 and "" where nobody knows."""

    ranks: int = 0
    device: str = ""
    parameters: int = 0


def read_attempts(run: Path) -> list[Attempt]:
    """All starts, the oldest first.

    Raises:
        ValueError: a file of them is damaged.
    """
    attempts = [_read_attempt(path) for path in run.glob("launches/*/attempt-*/attempt.json")]
    return sorted(attempts, key=lambda own: (own["began"], int(own.folder.name.rpartition("-")[2])))


def _read_attempt(path: Path) -> Attempt:
    table, *verdicts = map(_read_table, [path, *sorted(path.parent.glob("verdict-*.json"))])
    told = {str(verdict.get("state")): str(verdict.get("message", "")) for verdict in reversed(verdicts)}
    state = str(table.get("state") or next((name for name in VERDICTS if name in told), ""))
    return Attempt(folder=path.parent, table=table, state=state, message=told.get(state, ""))


def _read_table(path: Path) -> dict[str, Any]:
    try:
        table: dict[str, Any] = dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({error}); move its folder away") from error
    return table


def read_place(attempts: list[Attempt]) -> Place:
    """Of the last launch that has got so far."""
    for launch in dict.fromkeys(attempt.folder.parent for attempt in reversed(attempts)):
        if (log := launch / "rank-00000.log").is_file():
            with log.open("rb") as file:
                text = file.read(FIRST_BYTES).decode(errors="replace")
            if match := re.search(r"^(\d+) x (\w+), ([\d,]+) parameters", text, re.MULTILINE):
                return Place(int(match[1]), match[2], int(match[3].replace(",", "")))
    return Place()


def status_of(metrics: Path, last_step: int, num_steps: int, attempts: list[Attempt]) -> Status:
    """How a run stands.

    Args:
        metrics: its metrics.jsonl, which a run that lives has locked.
        num_steps: that it is to make; 0 if that is not known.
    """
    if is_locked(metrics):
        return Status("running", f"a process holds {metrics.name}")
    if last_step == num_steps:
        return Status("finished", f"all of train.steps = {num_steps} are made")
    if not attempts:
        return Status("ended", "why is not written down: only what launch/ starts tells")
    last = attempts[-1]
    if last.state:
        return Status(last.state, last.message or f"see {last.folder.parent.name}/rank-*.log")
    age, begun = (time.time() - path.stat().st_mtime for path in (metrics, last.folder / "attempt.json"))
    is_starting, is_here = begun < age, last["host"] == socket.gethostname()
    if min(age, begun) > SILENT_SECONDS or (is_here and not is_starting):
        return Status("died", "no process holds its lock, and nothing has told why")
    return Status("starting" if is_starting else "running", f"begun by launch/ on {last['host']}")


def is_locked(path: Path) -> bool:
    """Whether a process has the lock of a file; this asks and takes none, so that it is in nobody's way."""
    if sys.platform != "linux":
        return False
    question = struct.pack(FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    with path.open("rb") as file:
        answer = fcntl.fcntl(file, fcntl.F_GETLK, question)
    return bool(struct.unpack(FLOCK, answer)[0] != fcntl.F_UNLCK)
