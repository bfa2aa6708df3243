"""What ends a run that hangs: threads on every rank that know where it is, tell the others, and say who is behind."""

from __future__ import annotations

import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist

from oneflow_dist.verdict import tell

ANSWER_SECONDS = 10.0  # for the store and the disk, when everything else hangs
RECORDS = "TORCH_FR_DUMP_TEMP_FILE"  # names files with the last collectives, but for the rank; torchfrtrace reads them
PHASES = (  # in the order of a step: of two ranks in one step the one in the earlier phase is behind
    *("start", "waiting for data", "waiting for the other ranks", "forward and backward", "optimizer step"),
    "waiting for the device",
    *("validation", "checkpoint", "sampling"),
)
T = TypeVar("T")
Report = tuple[int, int, str, str]  # beat, step, phase, host


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a rank is."""

    step: int
    phase: str
    since: float  # of time.monotonic()
    limit: float  # seconds that it may stay

    def __str__(self) -> str:
        return f'"{self.phase}" of step {self.step}'


class Watchdog:
    """Ends this process with code 1 when it stays in one place for longer than the place's limit.

    One thread looks at the clock. Another tells the other ranks once a beat where this one is, through torchrun's store
    on a connection of its own, and may get stuck there; then the first still does its work.
    """

    def __init__(self, where: Callable[[], Place], folder: Path, beat_seconds: float):
        self._where = where
        self._folder = folder
        self._beat_seconds = beat_seconds
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._host = socket.gethostname()
        self._store = _connect()
        self._is_closed = threading.Event()
        self._report(0, where())  # from its first step on, nobody is unheard of
        self._threads = [threading.Thread(target=loop, daemon=True) for loop in (self._watch, self._tell)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Watch no longer."""
        self._is_closed.set()
        for thread in self._threads:
            thread.join(ANSWER_SECONDS)
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._is_closed.wait(self._beat_seconds):
            place = self._where()
            seconds = time.monotonic() - place.since
            if seconds > place.limit:
                self._end(place, seconds)
            if place.limit < threading.TIMEOUT_MAX:  # C code that holds the interpreter's lock stops this thread too
                faulthandler.dump_traceback_later(place.limit, exit=True)

    def _tell(self) -> None:
        """Report to the other ranks; write the stacks down when one of them has raised the alarm."""
        beat, has_written = 0, False
        with suppress(dist.DistError):  # the store has gone, and with it the rank or the torchrun that ends this run
            while not self._is_closed.wait(self._beat_seconds):
                beat, place = beat + 1, self._where()
                self._report(beat, place)
                if not has_written and self._store.check(["alarm"]):
                    has_written = True
                    self._write_stacks(place)

    def _report(self, beat: int, place: Place) -> None:
        self._store.set(str(self._rank), json.dumps((beat, place.step, place.phase, self._host)))

    def _end(self, place: Place, seconds: float) -> None:
        """Say where everybody is and end this process; of several ranks that hang, one speaks."""
        faulthandler.dump_traceback_later(8 * ANSWER_SECONDS, exit=True)  # whatever else gets stuck below
        is_first = _within(ANSWER_SECONDS, lambda: self._store.add("alarm", 1) == 1)
        _within(ANSWER_SECONDS, lambda: self._write_stacks(place))
        if is_first is not False or not self._has_been_said():
            self._say(place, seconds, has_store=is_first is not None)
        os._exit(1)  # data workers, stuck or not, are killed with it

    def _has_been_said(self) -> bool:
        """Wait until the rank that was first has spoken; it has three answers to wait for itself.

        Where the store ends meanwhile the first has spoken, too: it belongs to rank 0 or to torchrun, and those end
        when a rank does.
        """
        deadline = time.monotonic() + 4 * ANSWER_SECONDS
        try:
            while time.monotonic() < deadline:
                if self._store.check(["said"]):
                    return True
                time.sleep(0.1)
        except dist.DistError:
            return True
        return False

    def _say(self, place: Place, seconds: float, has_store: bool) -> None:
        others = _within(ANSWER_SECONDS, self._describe_ranks) if has_store else None
        if others is None:
            others = "; where the others are is not known, since the store of rank 0 or torchrun does not answer"
        message = (
            f"rank {self._rank} on {self._host} has been in {place} for {seconds:.1f} s, and guard.hang_seconds allows "
            f"{place.limit:g}{others}; Python stacks are in {self._folder}"
        )
        sys.stderr.write(f"\nerror: {message}\n")  # on a line of its own: a progress bar may be open
        sys.stderr.flush()
        _within(ANSWER_SECONDS, lambda: tell("hung", message))
        if has_store:
            _within(ANSWER_SECONDS, lambda: self._store.set("said", ""))

    def _write_stacks(self, place: Place) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"rank-{self._rank}.txt").open("a") as file:
            file.write(f"{time.strftime('%F %T')} {self._host}, in {place}\n")
            file.flush()
            faulthandler.dump_traceback(file)
        if RECORDS in os.environ:
            Path(f"{os.environ[RECORDS]}{self._rank}").write_bytes(_last_collectives())

    def _describe_ranks(self) -> str:
        """Where all ranks are, those behind first; silent is who reports nothing in two beats and more."""
        if self._world_size == 1:
            return ""
        before = self._read_reports()
        time.sleep(2.5 * self._beat_seconds)
        after = self._read_reports()
        groups: dict[tuple[int, int, str], list[int]] = {}
        for rank, report in after.items():
            _, step, phase, _ = report
            silent = ", silent" if report == before.get(rank) else ""
            groups.setdefault((step, PHASES.index(phase), silent), []).append(rank)
        parts = []
        for (step, phase_index, silent), ranks in sorted(groups.items()):
            hosts = f" on {after[ranks[0]][3]}" if len(ranks) == 1 else ""
            parts.append(f'{name_ranks(ranks)}{hosts} in "{PHASES[phase_index]}" of step {step}{silent}')
        missing = sorted(set(range(self._world_size)) - after.keys())
        parts += [f"{name_ranks(missing)} not heard of"] if missing else []
        return "; " + "; ".join(parts)

    def _read_reports(self) -> dict[int, Report]:
        names = [str(rank) for rank in range(self._world_size)]
        if not self._store.check(names):  # somebody has never reported; to ask for him is to wait
            names = [name for name in names if self._store.check([name])]
        reports = zip(names, self._store.multi_get(names), strict=True)
        return {int(name): tuple(json.loads(report)) for name, report in reports}


def name_ranks(ranks: list[int]) -> str:
    """Ascending ranks in few words: "rank 3", "ranks 0-2, 5"."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and runs[-1][-1] == rank - 1:
            runs[-1] = [runs[-1][0], rank]
        else:
            runs.append([rank])
    names = ", ".join("-".join(map(str, run)) for run in runs)
    return f"rank {names}" if len(ranks) == 1 else f"ranks {names}"


def _last_collectives() -> bytes:
    """What torch's flight recorder has, if TORCH_FR_BUFFER_SIZE has switched it on; NCCL has one of its own."""
    from torch._C import _distributed_c10d

    dump = "_dump_nccl_trace" if hasattr(_distributed_c10d, "_dump_nccl_trace") else "_dump_fr_trace"
    return getattr(_distributed_c10d, dump)()


def _connect() -> dist.Store:
    """A connection of our own to the store of the process group, whose own may be taken by a rank that waits."""
    if "WORLD_SIZE" not in os.environ:
        return dist.HashStore()
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    timeout = timedelta(seconds=ANSWER_SECONDS)
    store = dist.TCPStore(address, port, is_master=False, timeout=timeout, wait_for_workers=False)
    return dist.PrefixStore(f"watchdog {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _within(seconds: float, function: Callable[[], T]) -> T | None:
    """What `function` returns, or None if that takes longer or the store has gone."""
    results: list[T] = []

    def call() -> None:
        with suppress(dist.DistError, OSError):
            results.append(function())

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    return results[0] if results else None
