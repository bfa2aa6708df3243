"""What becomes of a run when SLURM, a node, a rank or a user ends it: launch/slurm.sbatch on a real SLURM.

    python tests/torture/slurm.py scratch                           everything, some minutes; root, slurm-wlm, munge
    python tests/torture/slurm.py scratch --only preempted cancelled

Each event happens to a run of configs/debug.toml over two nodes of one rank each; the metrics of a run that finishes
must be those of the unbroken one to the last bit. The table says what the run did; the exit code is 1 if any of that is
not as it should be.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oneflow_dist.runtime import run_program
from tests.launching import read_metrics, without_timings
from tests.torture.slurm_cluster import Cluster, wait_for

ROOT = Path(__file__).parents[2]
NUM_NODES = 4
PROCESSOR = {"ONEFLOW_PROCESSES": "1", "OMP_NUM_THREADS": "1"}
RUN = (
    "configs/debug.toml",
    "train.steps=80",
    "checkpoint.every_steps=1000",  # what is saved is saved because of the event
    "sampling.every_steps=0",
    "guard.hang_seconds=2",
)
SURVIVES = "guard.hang_seconds=30"


class Job:
    """A job of launch/slurm.sbatch, and the run that it trains."""

    def __init__(self, cluster: Cluster, run: Path, *words: str, flags: tuple[str, ...] = ("--nodes", "2"), **env: str):
        self.cluster, self.run = cluster, run
        command = "launch/slurm.sbatch", *flags, *RUN, f"run.folder={run}", *words
        self.said = cluster.run(*command, **PROCESSOR, **{"ONEFLOW_HEALTH": "off", **env})
        submitted = re.search(r"job (\d+)", self.said)
        assert submitted, self.said
        self.number = submitted[1]

    @property
    def state(self) -> str:
        """RUNNING, COMPLETED, ..."""
        return self.cluster.state(self.number)

    @property
    def log(self) -> str:
        """What the console shows."""
        path = ROOT / "runs/slurm" / f"{self.number}.log"
        return path.read_text() if path.exists() else ""

    @property
    def num_steps(self) -> int:
        """How many it has made."""
        path = self.run / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """What launch/attempt.py wrote down of each start."""
        return [json.loads(path.read_text()) for path in sorted(self.run.glob("launches/*/attempt-*/attempt.json"))]

    def pids(self) -> list[int]:
        """Of its ranks, by rank."""
        ranks = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                command, environment = ((path / name).read_bytes().split(b"\0") for name in ("cmdline", "environ"))
            except OSError:
                continue
            if b"oneflow_dist.train" in command and b"launch/agent.py" not in command:
                variables = dict(line.split(b"=", 1) for line in environment if b"=" in line)
                if variables.get(b"SLURM_JOB_ID") == self.number.encode():
                    ranks[int(variables[b"RANK"])] = int(path.name)
        return [pid for _, pid in sorted(ranks.items())]

    def train_on(self, steps: int = 4) -> None:
        """Wait until it has made so many steps more."""
        first = self.num_steps
        wait_for(lambda: self.num_steps >= first + steps or self.is_over, f"job {self.number} makes {steps} steps")
        assert not self.is_over, self.log

    @property
    def is_over(self) -> bool:
        """Whether it will not run again."""
        return self.state not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING")

    def restart(self) -> None:
        """Wait until it is in the queue again, and let it start."""
        wait_for(lambda: self.state == "PENDING" or self.is_over, f"job {self.number} is put back")
        time.sleep(2.0)  # SLURM takes back the old credential first; it waits two minutes itself
        self.cluster.start_now(self.number)

    def end(self) -> str:
        """Wait for the end; returns the job's state."""
        wait_for(lambda: self.is_over, f"job {self.number} ends")
        return self.state


@dataclass(frozen=True, slots=True)
class Setting:
    """What an event has to do with."""

    cluster: Cluster
    folder: Path  # for its runs
    unbroken: list[dict[str, Any]]  # the metrics of the run to which nothing happens

    def job(self, *words: str, **options: Any) -> Job:
        """One more, in a run folder of its own."""
        number = len(list(self.folder.glob("run-*")))
        (self.folder / f"run-{number}").mkdir()
        return Job(self.cluster, self.folder / f"run-{number}", *words, **options)

    def is_same(self, run: Path) -> bool:
        """Whether a run's metrics are those of the unbroken one, to the last bit."""
        return without_timings(read_metrics(run)) == self.unbroken


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an event."""

    did: str
    is_same: bool | None  # metrics as unbroken; None where the run is not to finish
    is_right: bool = True


def finished(setting: Setting, job: Job, num_attempts: int) -> Outcome:
    """Of a run that is to finish in so many attempts."""
    state, attempts = job.end(), job.attempts
    did = " -> ".join(f"{a.get('state', 'cut off')} ({a.get('saved_after') or 'nothing saved'})" for a in attempts)
    same = state == "COMPLETED" and setting.is_same(job.run)
    return Outcome(did, same, same and len(attempts) == num_attempts)


def ended(job: Job, state: str, *said: str, num_attempts: int = 1) -> Outcome:
    """Of a run that is not to go on."""
    last, log, attempts = job.end(), job.log, job.attempts
    line = next((line for line in reversed(log.splitlines()) if "launches/" in line), log[-300:])
    is_right = last == state and len(attempts) == num_attempts and all(re.search(text, log) for text in said)
    return Outcome(f"{last}; {line.rpartition('/')[2]}", None, is_right)


def time_limit(setting: Setting) -> Outcome:
    """SLURM's own signal before the end of the time, to the batch script."""
    job = setting.job("train.steps=100000", flags=("--nodes", "2", "--time", "1", "--signal", "B:USR1@45"))
    wait_for(lambda: job.state == "PENDING" and job.attempts, "the job is put back")
    did = job.attempts[0]
    setting.cluster.run("scancel", job.number)
    return Outcome(f"{did['state']} ({did['saved_after']}), put back", None, did["state"] == "stopped")


def asked_to_stop(setting: Setting) -> Outcome:
    """The signal that comes before a time limit."""
    job = setting.job()
    job.train_on()
    setting.cluster.run("scancel", "--batch", "--signal", "USR1", job.number)
    job.restart()
    return finished(setting, job, 2)


def preempted(setting: Setting) -> Outcome:
    """A more urgent job wants the nodes."""
    job = setting.job()
    job.train_on()
    urgent = setting.cluster.run("sbatch", "--parsable", "-p", "urgent", "-N", str(NUM_NODES), "--wrap", "sleep 3")
    wait_for(lambda: setting.cluster.state(urgent.strip()) == "COMPLETED", "the urgent job has run")
    job.restart()
    return finished(setting, job, 2)


def node_down(setting: Setting) -> Outcome:
    """SLURM gives a node up, and starts the job again itself."""
    job = setting.job()
    job.train_on()
    node = setting.cluster.job(job.number)["BatchHost"]
    setting.cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=torture")
    job.restart()
    outcome = finished(setting, job, 2)
    setting.cluster.run("scontrol", "update", f"NodeName={node}", "State=RESUME")
    return outcome


def rank_killed(setting: Setting) -> Outcome:
    """As the kernel does where memory runs out: torchrun starts all ranks again, in the same job."""
    job = setting.job("checkpoint.every_steps=10", "checkpoint.keep=100")
    job.train_on(15)
    os.kill(job.pids()[1], signal.SIGKILL)
    return finished(setting, job, 1)


def rank_hangs(setting: Setting) -> Outcome:
    """A rank stands still: the watchdog ends the others, torchrun starts all again."""
    job = setting.job("checkpoint.every_steps=10", "checkpoint.keep=100")
    job.train_on(15)
    pid = job.pids()[1]
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: "guard.hang_seconds" in job.log, "the watchdog speaks")
    os.kill(pid, signal.SIGKILL)  # torchrun would wait for --shutdown-timeout
    outcome = finished(setting, job, 1)
    return Outcome(outcome.did, outcome.is_same, outcome.is_right and "silent" in job.log)


def cancelled(setting: Setting) -> Outcome:
    """scancel: saved, and never started again."""
    job = setting.job()
    job.train_on()
    setting.cluster.run("scancel", job.number)
    outcome = ended(job, "CANCELLED")
    return Outcome(outcome.did, None, outcome.is_right and job.attempts[0]["state"] == "stopped")


def config_wrong(setting: Setting) -> Outcome:
    """What every attempt would stumble over."""
    return ended(setting.job("parallel.replicate=3"), "FAILED", r"parallel.*3.*WORLD_SIZE.*2")


def dies_always(setting: Setting) -> Outcome:
    """Attempts that die and save nothing."""
    job = setting.job(ONEFLOW_RESTARTS="0")
    for number in range(3):
        wait_for(lambda: len(job.pids()) == 2, "both ranks are there")
        os.kill(job.pids()[0], signal.SIGKILL)
        if number < 2:
            job.restart()
            wait_for(lambda count=number + 2: len(job.attempts) == count, "the next attempt begins")
    return ended(job, "FAILED", num_attempts=3)


def budget_spent(setting: Setting) -> Outcome:
    """One restart is allowed, two are needed."""
    job = setting.job(ONEFLOW_REQUEUES="1")
    for _ in range(2):
        job.train_on()
        setting.cluster.run("scancel", "--batch", "--signal", "USR1", job.number)
        if not job.attempts[1:]:
            job.restart()
    return ended(job, "FAILED", "ONEFLOW_REQUEUES.*1", num_attempts=2)


EVENTS: dict[str, Callable[[Setting], Outcome]] = {
    "asked to stop (scancel --batch --signal=USR1)": asked_to_stop,
    "preempted": preempted,
    "node set DOWN": node_down,
    "rank killed": rank_killed,
    "rank hangs": rank_hangs,
    "cancelled": cancelled,
    "config wrong": config_wrong,
    "dies always": dies_always,
    "budget spent": budget_spent,
    "time limit": time_limit,
}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path, help="folder for SLURM and the runs")
    parser.add_argument("--only", nargs="*", metavar="TEXT", help="only events with one of these in their names")
    args = parser.parse_args()
    chosen = {name: e for name, e in EVENTS.items() if args.only is None or any(text in name for text in args.only)}
    os.chdir(ROOT)
    scratch = args.scratch.resolve()
    scratch.mkdir(parents=True)
    print("| event | what the run did | bitwise | s | |\n| --- | --- | --- | --- | --- |", flush=True)
    wrong = 0
    with Cluster(scratch / "slurm", NUM_NODES) as cluster:
        start = time.monotonic()
        job = Job(cluster, scratch / "unbroken")
        assert job.end() == "COMPLETED", job.log
        setting = Setting(cluster, scratch, without_timings(read_metrics(job.run)))
        print(f"| nothing | COMPLETED | | {time.monotonic() - start:.0f} | ok |", flush=True)
        for name, event in chosen.items():
            start = time.monotonic()
            outcome = event(setting)
            same = {None: "", True: "yes", False: "NO"}[outcome.is_same]
            verdict = "ok" if outcome.is_right else "**WRONG**"
            wrong += not outcome.is_right
            print(f"| {name} | {outcome.did} | {same} | {time.monotonic() - start:.0f} | {verdict} |", flush=True)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    run_program(main)
