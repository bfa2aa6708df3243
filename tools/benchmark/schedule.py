"""Which job runs when, and which one has the device for itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tools.benchmark.jobs import Job
from tools.benchmark.processes import Child, Machine
from tools.benchmark.report import Line

ROOM_GIB = 77.0  # of a device's memory, for all jobs that run at a time
BIG_GIB = 14.0  # jobs of more run one after the other, the rest beside them
LIMITS = 60.0, 4.0  # of a job that has the device: so many seconds, or so many times what it is expected to take
TICK = 0.2  # seconds between looks at processes that say nothing


@dataclass(slots=True, eq=False)
class Run:
    """A job that was started."""

    job: Job
    process: Child
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

    def __init__(
        self, jobs: Sequence[Job], machine: Machine, tell: Callable[[Line], None], processes: int, seconds: float
    ):
        self.jobs, self.waiting = jobs, list(jobs)
        self.machine, self.tell, self.processes = machine, tell, processes
        self.end = machine.now() + seconds
        self.running: list[Run] = []
        self.alone: Run | None = None

    def run(self) -> None:
        """To the end of the last job, or of the time."""
        try:
            while (self.waiting or self.running) and self.machine.now() < self.end:
                if self.alone is None:
                    self._start_what_fits()
                    self._give_device()
                self.machine.wait([run.process for run in self.running], min(TICK, self.end - self.machine.now()))
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
            if self._must_wait(job):
                continue
            sizes = [run.job.gib for run in self.running]
            small, big = sum(gib for gib in sizes if gib <= BIG_GIB), sum(gib for gib in sizes if gib > BIG_GIB)
            if job.gib <= BIG_GIB:
                fits = small + job.gib + max(big, reserved) <= ROOM_GIB
            else:
                fits = not big and not reserved and small + job.gib <= ROOM_GIB
                reserved = reserved if fits else max(reserved, job.gib)
            if fits:
                self.waiting.remove(job)
                self.running.append(Run(job, self.machine.start(job), self.machine.now()))
                self.running.sort(key=lambda run: self.jobs.index(run.job))

    def _must_wait(self, job: Job) -> bool:
        unfinished = (*self.waiting, *(run.job for run in self.running))
        return any(other is not job and other.name.startswith(job.after) for other in unfinished)

    def _give_device(self) -> None:
        self.alone = next((run for run in self.running if run.is_ready), None)
        if self.alone is not None:
            for run in self.running:
                if run is not self.alone:
                    run.process.pause()
            self.alone.alone_since = self.machine.now()
            self.alone.process.answer()

    def _attend(self, run: Run) -> None:
        code = run.process.code()  # first, so that what it has said before its end is heard
        for message in run.process.messages():
            self._hear(run, message)
        if code is not None:
            reason = run.reason or f"ended with code {code} and no error; see the log"
            self._finish(run, *(("measured", "") if code == 0 else ("failed", reason)))
        elif run.alone_since is not None:
            limit = max(LIMITS[0], LIMITS[1] * run.job.measures)
            if self.machine.now() - run.alone_since > limit:
                self._finish(run, "failed", f"stopped after {limit:.0f} s with the device")

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
        self._tell_end(run.job, status, reason, self.machine.now() - run.begun)

    def _tell_end(self, job: Job, status: str, reason: str, seconds: float) -> None:
        self.tell({"job": job.name, "kind": "end", "status": status, "reason": reason, "seconds": seconds})
