"""Which job runs when, and which one has the device for itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

ROOM_GIB = 77.0  # of a device's memory, for all jobs that run at a time
BIG_GIB = 14.0  # jobs of more run one after the other, the rest beside them
LIMITS = 60.0, 4.0  # of a job that has the device: so many seconds, or so many times what it is expected to take
TICK = 0.2  # seconds between looks at processes that say nothing

Line = dict[str, Any]  # a number that was measured, or how a job ended


@runtime_checkable
class Job(Protocol):
    """What a schedule has to know of a job. Its place in the list is its worth."""

    @property
    def name(self) -> str: ...
    @property
    def gib(self) -> float: ...  # of the device's memory, at most
    @property
    def measures(self) -> float: ...  # seconds for which it needs the device for itself
    @property
    def after(self) -> tuple[str, ...]: ...  # jobs that have to end before it starts, by the beginnings of their names


@runtime_checkable
class Process(Protocol):
    """A job under way. It waits for an answer to each of its messages."""

    def messages(self) -> list[Line]: ...
    def answer(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def kill(self) -> None: ...  # it, or what is left of it; may be called again
    def code(self) -> int | None: ...  # None while it runs


@runtime_checkable
class World(Protocol):
    """Clock and processes; in a rehearsal both are false."""

    def now(self) -> float: ...
    def start(self, job: Any) -> Process: ...
    def wait(self, processes: Sequence[Process], seconds: float) -> None: ...  # or less, until one has something to say


@dataclass(slots=True, eq=False)
class Run:
    """A job that was started."""

    job: Job
    process: Process
    begun: float
    is_ready: bool = False  # all is compiled: it asks for the device
    alone_since: float | None = None
    reason: str = ""  # of its failure, in its own words


class Schedule:
    """Jobs in order of worth, several at a time; those that are ready get the device one after the other.

    While a job has the device, all others are stopped: they neither compute there nor take the processor. What compiles
    has no limit: only the end of the program ends it.

    Args:
        jobs: the most worthy first.
        tell: gets each number as a line with its job's name, and a line for each job that ends.
        processes: at most so many at a time.
        seconds: for everything; what has not ended by then is killed, and said to be.
    """

    def __init__(self, jobs: Sequence[Job], world: World, tell: Callable[[Line], None], processes: int, seconds: float):
        self.waiting = list(jobs)
        self.worth = {job.name: place for place, job in enumerate(jobs)}
        self.world, self.tell, self.processes = world, tell, processes
        self.end = world.now() + seconds
        self.running: list[Run] = []
        self.alone: Run | None = None

    def run(self) -> None:
        """To the end of the last job, or of the time."""
        try:
            while (self.waiting or self.running) and self.world.now() < self.end:
                if self.alone is None:
                    self._start_what_fits()
                    self._give_device()
                self.world.wait([run.process for run in self.running], min(TICK, self.end - self.world.now()))
                for run in list(self.running):
                    self._attend(run)
        finally:
            for run in self.running:
                run.process.kill()
        for run in list(self.running):
            self._finish(run, "failed", "stopped at the end of the time")
        for job in self.waiting:
            self._tell_end(job, "skipped", "no time left", 0.0)

    def _start_what_fits(self) -> None:
        reserved = 0.0  # for the first big job that has to wait: what is worth less may only run beside it
        for job in list(self.waiting):
            if len(self.running) >= self.processes:
                return
            small = sum(run.job.gib for run in self.running if run.job.gib <= BIG_GIB)
            big = sum(run.job.gib for run in self.running if run.job.gib > BIG_GIB)
            if self._must_wait(job):
                continue
            if job.gib <= BIG_GIB:
                fits = small + job.gib + max(big, reserved) <= ROOM_GIB
            else:
                fits = not big and not reserved and small + job.gib <= ROOM_GIB
                reserved = reserved if fits else max(reserved, job.gib)
            if fits:
                self.waiting.remove(job)
                self.running.append(Run(job, self.world.start(job), self.world.now()))
                self.running.sort(key=lambda run: self.worth[run.job.name])

    def _must_wait(self, job: Job) -> bool:
        unfinished = (*self.waiting, *(run.job for run in self.running))
        return (
            any(other is not job and other.name.startswith(job.after) for other in unfinished) if job.after else False
        )

    def _give_device(self) -> None:
        self.alone = next((run for run in self.running if run.is_ready), None)
        if self.alone is not None:
            for run in self.running:
                if run is not self.alone:
                    run.process.pause()
            self.alone.alone_since = self.world.now()
            self.alone.process.answer()

    def _attend(self, run: Run) -> None:
        code = run.process.code()  # first, so that what it has said before its end is heard
        for message in run.process.messages():
            self._hear(run, message)
        if code is not None:
            reason = run.reason or f"ended with code {code} and no error; see the log"
            self._finish(run, *(("measured", "") if code == 0 else ("failed", reason)))
        elif run.alone_since is not None and self.world.now() - run.alone_since > self._limit(run.job):
            self._finish(run, "failed", f"stopped after {self._limit(run.job):.0f} s with the device")

    def _hear(self, run: Run, message: Line) -> None:
        if message["kind"] == "ready":
            run.is_ready = True  # the answer comes with the device
            return
        if message["kind"] == "failure":
            run.reason = message["reason"]
        else:
            self.tell({"job": run.job.name, **message})
        run.process.answer()

    def _finish(self, run: Run, status: str, reason: str) -> None:
        self.running.remove(run)
        run.process.kill()
        if run is self.alone:
            self.alone = None
            for other in self.running:
                other.process.resume()
        self._tell_end(run.job, status, reason, self.world.now() - run.begun)

    def _tell_end(self, job: Job, status: str, reason: str, seconds: float) -> None:
        self.tell({"job": job.name, "kind": "end", "status": status, "reason": reason, "seconds": seconds})

    @staticmethod
    def _limit(job: Job) -> float:
        least, factor = LIMITS
        return max(least, factor * job.measures)
