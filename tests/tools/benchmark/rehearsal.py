"""The whole program without its measurements: `rehearsal.py FOLDER PART SPEED`, or as a job of that, with its task.

Schedule, processes, pipes, pauses and files are the real ones; a job sleeps for as long as it is expected to take,
SPEED times faster, and tells three numbers. Nothing here imports torch.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
NUMBERS = 3  # of each job


def main() -> None:
    """As the program, or as one of its jobs."""
    if len(sys.argv) == 2:
        take_part(json.loads(sys.argv[1]))
    else:
        folder, part, speed = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
        rehearse(folder, part, speed)


def rehearse(folder: Path, part: str, speed: float) -> None:
    """What `measure_gpu.measure_all` does."""
    from tools.benchmark import jobs, lines, processes, schedule

    shared = {"folder": str(folder), "speed": speed}
    notebook = lines.Notebook(folder / "results")
    machine = processes.Machine(shared, 8, folder / "log.txt", (sys.executable, __file__))
    all_jobs = jobs.jobs_of(part, 16384, 512)
    schedule.Schedule(all_jobs, machine, notebook.add, 8, 510.0 / speed).run()


def take_part(task: dict[str, Any]) -> None:
    """Sleep instead of compiling and measuring; a file of one's own has each number that was acknowledged."""
    from tools.benchmark.jobs import Job
    from tools.benchmark.link import Link, leave

    job, link = Job(**task["job"]), Link(task["job"]["is_warming"])
    spend(job.compiles / task["speed"])
    if job.measures or job.is_warming:
        link.ready()
    with (Path(task["folder"]) / f"{os.getpid()}.told").open("w") as told:
        for number in range(NUMBERS):
            spend(job.measures / NUMBERS / task["speed"])
            name = f"{job.name}: number {number}"
            link.tell("rate", name=name, ms=1.0)
            told.write(f"{name}\n")
            told.flush()
    leave(0)


def spend(seconds: float) -> None:
    """Sleep; what is stopped in between does not get its time back."""
    for _ in range(max(1, int(seconds / 0.005))):
        time.sleep(0.005)


class FalseProcess:
    """A job on a clock that lies."""

    def __init__(self, job: Any):
        self.job, self.left, self.phase = job, job.compiles, "compiling"
        self.is_paused, self.said = False, list[dict[str, Any]]()
        self.told = 0

    def messages(self) -> list[dict[str, Any]]:
        said, self.said = self.said, []
        return said

    def answer(self) -> None:
        if self.phase == "ready":
            self.phase, self.left = "measuring", self.job.measures / NUMBERS

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False

    def kill(self) -> None:
        self.phase = "killed"

    def code(self) -> int | None:
        return 0 if self.phase == "ended" and not self.said else None

    @property
    def works(self) -> bool:
        return not self.is_paused and self.phase in ("compiling", "measuring")

    def work(self, seconds: float) -> None:
        """So much less is left to do."""
        self.left -= seconds if self.works else 0.0
        if not self.works or self.left > 1e-9:
            return
        if self.phase == "compiling" and self.job.measures:
            self.phase = "ready"
            self.said.append({"kind": "ready"})
            return
        self.said.append({"kind": "rate", "name": f"{self.job.name}: number {self.told}", "ms": 1.0})
        self.told += 1
        self.left = self.job.measures / NUMBERS
        if self.told == NUMBERS or self.phase == "compiling":
            self.phase = "ended"


class FalseWorld:
    """Where a job takes exactly as long as its table says, and nobody waits."""

    def __init__(self) -> None:
        self.clock, self.processes = 0.0, list[FalseProcess]()
        self.started: dict[str, float] = {}

    def now(self) -> float:
        return self.clock

    def start(self, job: Any) -> FalseProcess:
        self.started[job.name] = self.clock
        self.processes.append(FalseProcess(job))
        return self.processes[-1]

    def wait(self, processes: Any, seconds: float) -> None:
        soon = [process.left for process in self.processes if process.works]
        passed = min([seconds, *soon])
        self.clock += passed
        for process in self.processes:
            process.work(passed)


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    main()
