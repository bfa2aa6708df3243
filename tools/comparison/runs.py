"""Runs made by the programs that a user would call, several at a time; what is there already is kept."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from threading import Lock

from oneflow_dist.commands.curves import read_lines
from oneflow_dist.config import load_config, write_config
from oneflow_dist.files import naming
from tools.comparison.figures import BOUND, REPORT, number_of, read_report
from tools.comparison.plan import Run

ROOT = Path(__file__).parents[2]
BOUND_DOCUMENTS = 256


class Processes:
    """Programs under way, which end together."""

    def __init__(self) -> None:
        self._lock, self._under_way = Lock(), set[subprocess.Popen[bytes]]()
        self._is_stopped = False

    def call(self, command: list[str], environment: dict[str, str], log: Path, output: Path) -> int:
        """Run a program to its end; its exit code.

        Args:
            output: what it prints; warnings and the rest go to the end of the log.
        """
        mode = "ab" if output == log else "wb"
        with log.open("ab") as errors, output.open(mode) as out:
            with self._lock:
                if self._is_stopped:
                    raise InterruptedError("the comparison ends")
                process = subprocess.Popen(
                    command, env=environment, stdout=out, stderr=errors, stdin=subprocess.DEVNULL
                )
                self._under_way.add(process)
            code = process.wait()
        with self._lock:
            self._under_way.discard(process)
        return code

    def stop(self) -> None:
        """Ask all to end, as a trainer does after its step and a checkpoint, and begin no other."""
        with self._lock:
            self._is_stopped = True
            for process in self._under_way:
                process.terminate()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Maker:
    """How a run is made."""

    samples: int
    threads: int  # of each program
    processes: Processes

    def make(self, run: Run) -> None:
        """Train, judge and bound, as far as that is not done.

        Raises:
            ValueError: a program failed, or what is there is another run.
        """
        check_same(run)
        run.folder.mkdir(parents=True, exist_ok=True)
        if not is_judged(run, self.samples):
            self.train(run)
            self.start(run, [str(ROOT / "tools/digits/evaluate.py"), str(run.folder), "--samples", str(self.samples)])
            (run.folder / BOUND).unlink(missing_ok=True)  # of what was there before
        if not (run.folder / BOUND).exists():
            words = ["--task", "image_to_text", "--documents", str(BOUND_DOCUMENTS)]
            partial = run.folder / f"{BOUND}.partial"
            self.start(run, ["-m", "oneflow_dist.commands.bound", str(run.folder), *words], partial)
            partial.rename(run.folder / BOUND)

    def train(self, run: Run) -> None:
        """To its last step."""
        self.start(run, ["-m", "oneflow_dist.train", str(run.contender.path), *run.overrides])
        check_finished(run)

    def start(self, run: Run, arguments: list[str], output: Path | None = None) -> None:
        """A program of ours, to its end."""
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        code = self.processes.call([sys.executable, *arguments], environment, run.log, output or run.log)
        if code != 0:
            program = arguments[1] if arguments[0] == "-m" else Path(arguments[0]).relative_to(ROOT)
            raise ValueError(f"{run.log}: {program} ended with code {code}; its last line: {last_line(run.log)}")


def last_line(log: Path) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()] if log.exists() else []
    return next((line for line in reversed(lines) if line), "none")


def check_same(run: Run) -> None:
    """Refuse to go on with a run of another config than is compared now.

    Raises:
        ValueError: names the first line in which they differ.
    """
    path = run.folder / "config.toml"
    if not path.exists():
        return
    there, here = (
        write_config(dataclasses.replace(config, run=dataclasses.replace(config.run, folder=run.name))).splitlines()
        for config in (load_config(path), load_config(run.contender.path, list(run.overrides)))
    )
    for old, new in zip(there, here, strict=False):
        if old != new:
            raise ValueError(
                f"{path}: has {old} where this comparison has {new}; name another OUT, or remove {run.folder}"
            )


def check_finished(run: Run) -> None:
    """Refuse to judge a training that a signal has stopped, which is no failure to the trainer.

    Raises:
        ValueError: names its last step.
    """
    last = read_lines(run.folder)[-1]["step"]
    if last < run.steps:
        raise ValueError(f"{run.folder}: stopped after step {last} of {run.steps}; run the same command to go on")


def is_judged(run: Run, samples: int) -> bool:
    """Whether its report is of all its steps and of as many documents."""
    if not (run.folder / REPORT).exists():
        return False
    report = read_report(run.folder)
    found = [number_of(report, key, run.folder) for key in ("steps", "num_samples")]
    return found == [run.steps, samples]


def is_made(run: Run, samples: int) -> bool:
    """Whether nothing is left to do."""
    return is_judged(run, samples) and (run.folder / BOUND).exists()


def make_runs(runs: Sequence[Run], maker: Maker, jobs: int) -> None:
    """Make all that are not there, `jobs` at a time and in their order; where one fails, the others stop.

    Raises:
        ValueError: of the first that failed.
    """
    for run in runs:
        check_same(run)
    done = [run for run in runs if is_made(run, maker.samples)]
    progress = Progress([run for run in runs if run not in done], len(done))
    with ThreadPoolExecutor(jobs) as pool, ExitStack() as unless_all_are_made:
        unless_all_are_made.callback(maker.processes.stop)
        unless_all_are_made.callback(pool.shutdown, wait=False, cancel_futures=True)
        for future in as_completed([pool.submit(make_one, run, maker, progress) for run in progress.waiting]):
            future.result()
        unless_all_are_made.pop_all()


def make_one(run: Run, maker: Maker, progress: Progress) -> None:
    """A run, between two lines of progress."""
    begin = time.monotonic()
    progress.say(f"{run.name} begins: {run.steps} steps; {run.log}")
    with naming(run.folder):
        maker.make(run)
    progress.finish(run)
    progress.say(f"{run.name} ended in {in_hours(time.monotonic() - begin)}; {progress.left}")


def in_hours(seconds: float) -> str:
    """As 1:02:03."""
    return str(timedelta(seconds=round(seconds)))


class Progress:
    """What is done and when all will be, if a FLOP takes as long everywhere."""

    def __init__(self, waiting: Sequence[Run], num_there: int):
        self.waiting = waiting
        self._done: list[Run] = []
        self._begin, self._lock = time.monotonic(), Lock()
        if num_there:
            print(f"{num_there} runs are there already, {len(waiting)} to be made", flush=True)

    def finish(self, run: Run) -> None:
        """One more is done."""
        with self._lock:
            self._done.append(run)

    @property
    def left(self) -> str:
        """How long it will take."""
        done, total = (sum(run.flops for run in runs) for runs in (self._done, self.waiting))
        return f"about {in_hours((time.monotonic() - self._begin) * (total / done - 1.0))} left"

    def say(self, text: str) -> None:
        """A line, with what has passed."""
        elapsed = in_hours(time.monotonic() - self._begin)
        print(f"{elapsed} [{len(self._done)}/{len(self.waiting)}] {text}", flush=True)
