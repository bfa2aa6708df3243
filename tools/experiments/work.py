"""Tasks done by programs that a user would call, several at a time, by any number of machines that share a folder."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from threading import Event, Lock
from typing import Any

from oneflow_dist.commands.curves import read_lines
from oneflow_dist.files import claim, naming
from oneflow_dist.progress import find_latest
from tools.benchmark.machine import describe_machine
from tools.experiments.plan import GPUS, Run, Task, slug
from tools.experiments.reading import ROOT, Data, Experiment

FINISHED = "finished.json"  # in a run folder: what the training took
POLL_SECONDS = 1.0  # between looks at what others are doing


class Programs:
    """Those under way, which end together."""

    def __init__(self, threads: int):
        self.threads = threads  # of each
        self.is_stopped = Event()
        self._lock, self._under_way = Lock(), set[subprocess.Popen[bytes]]()

    def call(self, command: Sequence[str], log: Path) -> None:
        """Run a program to its end; what it prints goes to the end of a log.

        Raises:
            ValueError: it failed, with its last line.
            InterruptedError: all are to end.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        with log.open("ab") as out:
            with self._lock:
                if self.is_stopped.is_set():
                    raise InterruptedError("the experiment ends")
                own = {"stdout": out, "stderr": out, "stdin": subprocess.DEVNULL, "env": environment, "cwd": ROOT}
                process = subprocess.Popen(command, **own)  # type: ignore[call-overload]
                self._under_way.add(process)
            code = process.wait()
        with self._lock:
            self._under_way.discard(process)
        if self.is_stopped.is_set():
            raise InterruptedError("the experiment ends")
        if code:
            raise ValueError(
                f"{log}: {shlex.join(command[:4])} ended with code {code}; its last line: {last_line(log)}"
            )

    def stop(self) -> None:
        """Ask all to end, as a trainer does after its step and a checkpoint, and begin no other."""
        with self._lock:
            self.is_stopped.set()
            for process in self._under_way:
                process.send_signal(signal.SIGTERM)


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "none")


@dataclass(frozen=True, slots=True)
class Worker:
    """Does tasks, each as far as it has not been done."""

    programs: Programs
    has_slurm: bool = False

    def do(self, task: Task) -> bool:
        """Train and measure, and write the result; False where another process is at it."""
        task.path.parent.mkdir(parents=True, exist_ok=True)
        own = claim(task.path)
        if own is None:
            return False
        with own:
            took = {} if task.run is None else self.train(task.run)
            start = time.monotonic()
            rows = self.measure(task)
            made = describe_machine(commit="")
            result = {
                "experiment": task.experiment.name,
                "arm": task.arm,
                "seed": task.seed,
                "training": took,
                "measuring_seconds": round(time.monotonic() - start, 1),
                "machine": {key: made[key] for key in ("device", "cores", "torch", "python", "commit", "date")},
                "rows": rows,
            }
            own.file.write((json.dumps(result) + "\n").encode())
            own.commit()
        return True

    def train(self, run: Run) -> dict[str, Any]:
        """To its last step, after the run that it begins with; what it took."""
        if run.start is not None:
            self.train(run.start)
        path = run.folder / FINISHED
        run.folder.mkdir(parents=True, exist_ok=True)
        own = claim(path, wait=True)
        if own is None:
            return dict(json.loads(path.read_text()))
        with own:
            self.programs.call([*trainer_of(run, self.has_slurm), str(run.base), *run.overrides], run.log)
            took = cost_of(run)
            own.file.write((json.dumps(took) + "\n").encode())
            own.commit()
        return took

    def measure(self, task: Task) -> list[Any]:
        """The rows of all probes."""
        rows = task.path.with_suffix(".rows")
        words = [task.scale, task.source, task.arm, str(task.seed), str(task.model), str(rows)]
        self.programs.call([sys.executable, "-m", "tools.experiments.measuring", *words], task.log)
        found = json.loads(rows.read_text())
        rows.unlink()
        return list(found)


def trainer_of(run: Run, has_slurm: bool) -> list[str]:
    """The program that trains a run: on this machine's cores, on its GPUs, or as a job of SLURM that is waited for.

    Raises:
        ValueError: it needs several hosts, which only SLURM gives.
    """
    if run.variant:
        return [sys.executable, "-m", "tools.experiments.varied", run.variant]
    if run.hosts == 0:
        return [sys.executable, "-m", "oneflow_dist.train"]
    if has_slurm:
        return ["launch/slurm.sbatch", "--wait", f"--nodes={run.hosts}", f"--gpus-per-node={GPUS}"]
    if run.hosts > 1:
        raise ValueError(f"{run.folder}: needs {run.hosts} hosts of {GPUS} GPUs; --slurm submits it as a job")
    return ["launch/torchrun.sh"]


def cost_of(run: Run) -> dict[str, Any]:
    """What a finished training took.

    Raises:
        ValueError: it was stopped before its last step.
    """
    lines = [line for line in read_lines(run.folder) if "seconds" in line]
    if lines[-1]["step"] < run.config.train.steps or find_latest(str(run.folder)) is None:
        raise ValueError(f"{run.folder}: stopped after step {lines[-1]['step']}; run the same command to go on")
    return {
        "steps": lines[-1]["step"],
        "seconds": round(sum(line["seconds"] for line in lines), 2),
        "tflops": sum(line["seconds"] * (line["tflops_per_second"] or 0.0) for line in lines),
        "folder": run.folder.name,
    }


def make_data(experiments: Iterable[Experiment], programs: Programs, runs: Path) -> None:
    """Write what data the experiments lack, by the programs that they name."""
    with naming(runs):
        runs.mkdir(parents=True, exist_ok=True)
    for data in {own.file: own for experiment in experiments for own in experiment.data.values()}.values():
        made = claim(runs / f"data-{slug(data.file)}", wait=True) if can_be_made(data) else None
        if made is None:
            continue
        with made:
            if not (ROOT / data.file).exists():
                print(f"{data.file}: python {data.program}", flush=True)
                programs.call([sys.executable, *shlex.split(data.program)], runs / "data.log")
            made.commit()


def can_be_made(data: Data) -> bool:
    """Whether what no program makes is there."""
    return not data.needs or (ROOT / data.needs).exists()


def do_all(tasks: Sequence[Task], worker: Worker, jobs: int) -> None:
    """Do all tasks, `jobs` at a time, and wait for those that other processes have taken; where one fails, all stop.

    Raises:
        ValueError: of the first that failed.
    """
    missing = [task for task in tasks if not task.path.exists()]
    progress = Progress(len(missing), len(tasks) - len(missing))

    def do_one(task: Task) -> bool:
        begin = time.monotonic()
        is_mine = worker.do(task)
        if is_mine:
            progress.tell(task, time.monotonic() - begin)
        return is_mine

    def work() -> None:
        while not worker.programs.is_stopped.is_set():
            left = [task for task in missing if not task.path.exists()]
            if not left:
                return
            if not any(do_one(task) for task in left):  # all of them are under way somewhere
                time.sleep(POLL_SECONDS)

    with ThreadPoolExecutor(jobs) as pool, ExitStack() as unless_all_are_done:
        unless_all_are_done.callback(worker.programs.stop)
        for future in as_completed([pool.submit(work) for _ in range(jobs)]):
            future.result()
        unless_all_are_done.pop_all()


class Progress:
    """What is done, and when all will be if tasks take as long as so far."""

    def __init__(self, missing: int, there: int):
        self.missing, self.done = missing, 0
        self._begin, self._lock = time.monotonic(), Lock()
        print(f"{there + missing} measurements, {there} of them are there", flush=True)

    def tell(self, task: Task, seconds: float) -> None:
        """A line for a task that is done."""
        with self._lock:
            self.done += 1
            passed = time.monotonic() - self._begin
            left = passed * max(0.0, self.missing / self.done - 1.0)
            line = f"{in_hours(passed)} [{self.done}/{self.missing}] {task.name}: {seconds:.0f} s"
            print(f"{line}; about {in_hours(left)} left", flush=True)


def in_hours(seconds: float) -> str:
    """As 1:02:03."""
    return str(timedelta(seconds=round(seconds)))
