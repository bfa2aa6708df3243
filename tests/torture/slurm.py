"""What becomes of a run when SLURM, a node, a rank or a user ends it: launch/slurm.sbatch on a real SLURM.

    python tests/torture/slurm.py scratch                           everything, some minutes; root, slurm-wlm, munge
    python tests/torture/slurm.py scratch --only leave_nodes cancelled

Each event happens to a run of configs/debug.toml over two nodes of one rank each; the metrics of a run that finishes
must be those of the unbroken one to the last bit. The table says what the run did; the exit code is 1 if any of that is
not as it should be.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oneflow_dist.runtime import run_program
from tests.launching import assert_same_steps, read_metrics, without_timings
from tests.processes import environment, find_ranks, parent_of
from tests.torture.slurm_cluster import Cluster, wait_for

ROOT = Path(__file__).parents[2]
NUM_NODES = 8
PROCESSOR = {"ONEFLOW_PROCESSES": "1", "OMP_NUM_THREADS": "1"}
RUN = (
    "configs/debug.toml",
    "train.steps=80",
    "checkpoint.every_steps=1000",  # what is saved is saved because of the event
    "sampling.every_steps=0",
    "guard.hang_seconds=2",
)
# An nvidia-smi: the first node of a first attempt has a GPU with ECC errors, others have none.
ECC_ERRORS = """#!/bin/sh
case $ONEFLOW_ATTEMPT.$GROUP_RANK in *attempt-0.0) echo "0, GPU-1, 580.65.06, 1, 0x0, 12" ;; esac
"""


class Job:
    """A job of launch/slurm.sbatch, and the run that it trains."""

    def __init__(self, cluster: Cluster, run: Path, *words: str, flags: tuple[str, ...] = ("--nodes", "2"), **env: str):
        self.cluster, self.run = cluster, run
        self._forward_at = 0.0  # of time.monotonic(), while it waits in the queue
        self.folder = run.parent  # of its log
        output = "--output", f"{self.folder}/%j.log"
        command = "launch/slurm.sbatch", *flags, *output, *RUN, f"run.folder={run}", *words
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
        path = self.folder / f"{self.number}.log"
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
        found = {pid: environment(pid) for pid in find_ranks()}
        own = {int(of["RANK"]): pid for pid, of in found.items() if of.get("SLURM_JOB_ID") == self.number}
        return [own[rank] for rank in sorted(own)]

    def train_on(self, steps: int = 4) -> None:
        """Wait until it has made so many steps more."""
        first = self.num_steps
        wait_for(lambda: self.num_steps >= first + steps or self.is_over, f"job {self.number} to make {steps} steps")
        assert not self.is_over, self.log

    @property
    def is_over(self) -> bool:
        """Whether it will not run again."""
        return self.state not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING")

    def restart(self, number: int) -> None:
        """Wait until its attempt of this number has begun."""
        wait_for(lambda: len(self.attempts) > number or self.is_over_in_time(), f"attempt {number} of {self.number}")
        assert not self.is_over, self.log

    def is_over_in_time(self) -> bool:
        """Whether it will not run again; one that waits in the queue is put forward now and then.

        SLURM lets it wait for two minutes, since its nodes have to end what is left of the last start: one that still
        has something refuses the next, is drained, and the job is held. One that has ended it in this very second
        refuses, too, and the job has failed.
        """
        if self.state != "PENDING" or self.cluster.is_on_nodes(self.number):
            self._forward_at = 0.0
        elif not self._forward_at:
            self._forward_at = time.monotonic() + 2.0
        elif time.monotonic() > self._forward_at:
            self.cluster.start_now(self.number)
            self._forward_at = time.monotonic() + 8.0  # asked all the time, SLURM never starts it
        return self.is_over

    def end(self) -> str:
        """Wait for the end; returns the job's state."""
        wait_for(lambda: self.is_over, f"the end of job {self.number}")
        return self.state


@dataclass(frozen=True, slots=True)
class Row:
    """An event, and what the run did."""

    event: str
    did: str
    seconds: float
    is_same: bool | None = None  # metrics as of the unbroken run; None where the run is not to finish
    is_right: bool = True

    def __str__(self) -> str:
        same = {None: "", True: "yes", False: "NO"}[self.is_same]
        return f"| {self.event} | {self.did} | {same} | {self.seconds:.0f} | {'ok' if self.is_right else '**WRONG**'} |"


@dataclass(frozen=True, slots=True)
class Setting:
    """What an event has to do with."""

    cluster: Cluster
    folder: Path  # for runs
    unbroken: Path  # the run to which nothing happens

    def job(self, name: str, *words: str, **options: Any) -> Job:
        """One more, in a run folder of its own."""
        return Job(self.cluster, self.folder / name, *words, **options)

    def is_same(self, run: Path) -> bool:
        """Whether a run's metrics are those of the unbroken one, to the last bit."""
        own, theirs = (without_timings(read_metrics(folder)) for folder in (run, self.unbroken))
        return own == theirs


def put_back(setting: Setting, name: str, events: dict[str, Callable[[Setting, Job], None]]) -> list[Row]:
    """A run that events take off its nodes, one after the other, and that goes on each time."""
    job, seconds = setting.job(name), []
    for event in events.values():
        job.train_on()
        start = time.monotonic()
        event(setting, job)
        job.restart(len(seconds) + 1)
        job.train_on(1)
        seconds.append(time.monotonic() - start)
    state = job.end()
    rows = []
    for number, (event, attempt) in enumerate(zip(events, job.attempts[:-1], strict=True)):
        did = f"{attempt.get('state', 'cut off')}, {attempt.get('saved_after') or 'nothing saved'}, went on"
        is_same = state == "COMPLETED" and setting.is_same(job.run)
        rows.append(Row(event, did, seconds[number], is_same, is_same))
    return rows


def ended(event: str, job: Job, start: float, state: str, *said: str, num_attempts: int = 1) -> Row:
    """Of a run that is not to go on."""
    last, log, attempts = job.end(), job.log, job.attempts
    line = next((line for line in reversed(log.splitlines()) if "launches/" in line), log.rpartition("error: ")[2])
    is_right = last == state and len(attempts) == num_attempts and all(re.search(text, log) for text in said)
    return Row(event, f"{last}: {line.rpartition('/')[2].strip()}", time.monotonic() - start, is_right=is_right)


def ask_to_stop(setting: Setting, job: Job) -> None:
    """The signal that comes before a time limit."""
    setting.cluster.run("scancel", "--batch", "--signal", "USR1", job.number)


def preempt(setting: Setting, job: Job) -> None:
    """A more urgent job takes its nodes."""
    cluster = setting.cluster
    command = "sbatch", "--parsable", "-p", "urgent", "-w", cluster.job(job.number)["NodeList"], "-N", "2"
    urgent = cluster.run(*command, "-o", "/dev/null", "--wrap", "sleep 1").strip()
    wait_for(lambda: cluster.state(urgent) == "COMPLETED", f"the urgent job {urgent} to run")


def set_down(setting: Setting, job: Job) -> None:
    """SLURM gives a node up, and puts the job back itself."""
    node = setting.cluster.job(job.number)["BatchHost"]
    setting.cluster.run("scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=torture")


def leave_nodes(setting: Setting) -> list[Row]:
    """All that takes a job off its nodes, to one run."""
    events = {"told to stop: USR1 to the batch script": ask_to_stop, "preempted": preempt, "a node set DOWN": set_down}
    return put_back(setting, "leaves", events)


def preempted_with_signal(setting: Setting) -> list[Row]:
    """Where SLURM sends before preemption what a job has asked for before its time limit."""
    setting.cluster.signal_before_preemption()
    return put_back(setting, "signalled", {"preempted, preempt_send_user_signal": preempt})


def stay_on_nodes(setting: Setting) -> list[Row]:
    """Ranks that die or hang: all are started again on the same nodes."""
    job, rows, seconds = setting.job("stays", "checkpoint.every_steps=10", "checkpoint.keep=100"), [], {}
    for event, number in {"a rank killed (SIGKILL)": signal.SIGKILL, "a rank hangs (SIGSTOP)": signal.SIGSTOP}.items():
        job.train_on(12)
        start, before = time.monotonic(), job.pids()
        os.kill(before[1], number)
        if number == signal.SIGSTOP:
            wait_for(lambda: "guard.hang_seconds" in job.log, "the watchdog to speak")
            os.kill(before[1], signal.SIGKILL)  # torchrun would do so after --shutdown-timeout
        wait_for(lambda before=before: len(job.pids()) == 2 and not set(job.pids()) & set(before), "new ranks")
        job.train_on(1)
        seconds[event] = time.monotonic() - start
    state, attempts = job.end(), job.attempts
    is_same = state == "COMPLETED" and setting.is_same(job.run)
    is_told = re.search(r'rank 1 on \S+ in ".*silent', job.log) is not None
    recorded = list(job.run.glob("launches/*/attempt-1/flight-0"))
    for event, took in seconds.items():
        is_right = is_same and len(attempts) == 3 and is_told and len(recorded) == 1
        rows.append(Row(event, "all ranks started again on the same nodes, went on", took, is_same, is_right))
    return rows


def unfit_node(setting: Setting) -> list[Row]:
    """The health check does not like the first node that the job gets; the next attempt runs without it."""
    excluded, tools = setting.folder / "excluded_nodes", setting.folder / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text(ECC_ERRORS)
    (tools / "nvidia-smi").chmod(0o755)
    paths = {"PATH": f"{tools}:{os.environ['PATH']}", "ONEFLOW_EXCLUDE": str(excluded)}
    job = setting.job("unfit", ONEFLOW_HEALTH="on", **paths)
    start = time.monotonic()
    job.restart(1)
    job.train_on(1)
    seconds = time.monotonic() - start
    node, now = excluded.read_text().split()[0], setting.cluster.job(job.number)
    is_left_out = now["ExcNodeList"] == node and node not in setting.cluster.hosts(now["NodeList"])
    state, first = job.end(), job.attempts[0]
    did = f"{first['state']}, {node} left out, went on"
    is_same = state == "COMPLETED" and setting.is_same(job.run)
    return [
        Row(
            "a node whose GPU has ECC errors",
            did,
            seconds,
            is_same,
            is_same and is_left_out and first["state"] == "unfit",
        )
    ]


def node_lost(setting: Setting) -> list[Row]:
    """A node's power fails."""
    job = setting.job("lost", "checkpoint.every_steps=10", "checkpoint.keep=100", ONEFLOW_SRUN="--wait=5")
    job.train_on(12)
    start = time.monotonic()
    node = lose_node(setting.cluster, job, 1)
    wait_for(job.is_over_in_time, f"the end of job {job.number}")
    seconds = time.monotonic() - start
    state, attempts = job.end(), job.attempts
    setting.cluster.start_daemon(node)
    is_same = state == "COMPLETED" and setting.is_same(job.run)
    did = f"{', '.join(attempt.get('state', 'cut off') for attempt in attempts[:-1])}; put back; went on elsewhere"
    return [Row("a node lost", did, seconds, is_same, is_same)]


def goes_on_with_fewer(setting: Setting) -> list[Row]:
    """The same, but the job may go on without the node; 4 packs on 3 ranks, then on 2."""
    flags, options = ("--nodes", "3"), {"ONEFLOW_MIN_NODES": "2", "ONEFLOW_SRUN": "--wait=5"}
    job = setting.job("fewer", "checkpoint.every_steps=10", "checkpoint.keep=100", flags=flags, **options)
    job.train_on(12)
    start = time.monotonic()
    node = lose_node(setting.cluster, job, 1)
    job.restart(1)
    job.train_on(1)
    seconds = time.monotonic() - start
    state, attempts = job.end(), job.attempts
    setting.cluster.start_daemon(node)
    assert_same_steps(job.run, setting.unbroken)
    sizes = [attempt["nodes"] for attempt in attempts]
    did = f"{attempts[0]['state']}; went on with {sizes[-1]} of 3 nodes in the same job, losses equal to rounding"
    is_right = state == "COMPLETED" and sizes == [3, 2] and setting.cluster.job(job.number)["Restarts"] == "0"
    return [Row("a node lost, ONEFLOW_MIN_NODES=2", did, seconds, is_right=is_right)]


def lose_node(cluster: Cluster, job: Job, number: int) -> str:
    """All that runs on the node of a rank is gone at once, SLURM's daemons too; returns its name."""
    rank = job.pids()[number]
    node, agent = environment(rank)["SLURMD_NODENAME"], parent_of(rank)
    cluster.kill_daemon(node)
    for pid in (parent_of(agent), agent, rank):  # slurmstepd first: it would tell
        os.kill(pid, signal.SIGKILL)
    return node


def cancelled(setting: Setting) -> list[Row]:
    """It stays cancelled; before, another job is sent to the same folder."""
    job = setting.job("cancelled", "train.steps=100000")
    job.train_on()
    start = time.monotonic()
    second = setting.job("cancelled", "train.steps=100000")
    refused = ended("a second job on the same run folder", second, start, "FAILED", "another process is running here")
    job.train_on()
    start = time.monotonic()
    setting.cluster.run("scancel", job.number)
    row = ended("scancel", job, start, "CANCELLED")
    is_saved = job.attempts[0]["state"] == "stopped" and job.attempts[0]["saved_after"] != ""
    return [refused, dataclasses.replace(row, is_right=row.is_right and is_saved)]


def gives_up(setting: Setting) -> list[Row]:
    """What no restart would mend, or not for ever."""
    start = time.monotonic()
    wrong = setting.job("wrong", "parallel.replicate=3")
    rows = [ended("config wrong on these nodes", wrong, start, "FAILED", r"parallel.*3.*WORLD_SIZE.*2")]
    start = time.monotonic()
    spent = setting.job("spent", ONEFLOW_REQUEUES="0")
    spent.train_on(1)
    ask_to_stop(setting, spent)
    return [*rows, ended("told to stop, its requeues spent", spent, start, "FAILED", "ONEFLOW_REQUEUES.*0")]


def dies_always(setting: Setting) -> list[Row]:
    """Attempts that die and save nothing."""
    start = time.monotonic()
    job = setting.job("dies")
    for number in range(3):  # twice on the same nodes, then perhaps on others
        job.restart(number)
        job.train_on(1)
        os.kill(job.pids()[0], signal.SIGKILL)
    return [ended("a rank killed in three attempts", job, start, "FAILED", num_attempts=3)]


def time_limit(setting: Setting) -> list[Row]:
    """SLURM's own signal before the end of the time, up to half a minute earlier than it is asked for."""
    start = time.monotonic()
    job = setting.job("long", "train.steps=100000", flags=("--nodes", "2", "--time", "1", "--signal", "B:USR1@10"))
    job.train_on(1)
    wait_for(lambda: job.state == "PENDING", "the job to be put back")
    attempt = job.attempts[0]
    setting.cluster.run("scancel", job.number)
    did = f"{attempt['state']}, {attempt['saved_after']}, put back"
    return [Row("time limit", did, time.monotonic() - start, is_right=attempt["state"] == "stopped")]


def array(setting: Setting) -> list[Row]:
    """Tasks of one node each; that of the unbroken run's seed takes its batches."""
    start = time.monotonic()
    job = setting.job("seed-%a", "run.seed=%a", flags=("--nodes", "1", "--array", "0-1"))
    runs = [setting.folder / f"seed-{number}" for number in (0, 1)]
    wait_for(lambda: all((run / "checkpoints/step-00000080/COMPLETE").exists() for run in runs), "both to be trained")
    assert_same_steps(runs[0], setting.unbroken)
    is_other = read_metrics(runs[0])[0]["loss"] != read_metrics(runs[1])[0]["loss"]
    did = "both finished; the one of this seed took the batches that two nodes take, losses equal to rounding"
    return [Row("an array, a node a task", did, time.monotonic() - start, is_right=is_other and job.said != "")]


def play(event: Callable[[Setting], list[Row]], setting: Setting) -> list[Row]:
    """Its rows; where it does not go as it should, one that says so, and the others go on."""
    start = time.monotonic()
    try:
        return event(setting)
    except (AssertionError, OSError) as error:
        return [Row(event.__name__, f"{error}", time.monotonic() - start, is_right=False)]


# Two at once, since much of it is waiting; the last changes what preemption is.
EVENTS = (
    *(leave_nodes, stay_on_nodes, gives_up, time_limit, dies_always, cancelled, array, unfit_node, node_lost),
    goes_on_with_fewer,
)
LAST = (preempted_with_signal,)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path, help="a folder that does not exist yet, for SLURM and the runs")
    parser.add_argument("--only", nargs="*", metavar="NAME", help=", ".join(e.__name__ for e in (*EVENTS, *LAST)))
    args = parser.parse_args()
    os.chdir(ROOT)
    scratch = args.scratch.resolve()
    scratch.mkdir(parents=True)
    print("| event | what the run did | bitwise | s | |\n| --- | --- | --- | --- | --- |", flush=True)
    start = time.monotonic()
    with Cluster(scratch / "slurm", NUM_NODES) as cluster, ThreadPoolExecutor(2) as pool:
        job = Job(cluster, scratch / "unbroken")
        assert job.end() == "COMPLETED", job.log
        print(Row("nothing", "finished", time.monotonic() - start), flush=True)
        setting = Setting(cluster, scratch, job.run)
        wrong = 0
        for events in (EVENTS, LAST):
            chosen = [event for event in events if args.only is None or event.__name__ in args.only]
            for rows in map(Future.result, as_completed([pool.submit(play, event, setting) for event in chosen])):
                print(*rows, sep="\n", flush=True)
                wrong += sum(not row.is_right for row in rows)
    print(f"\n{time.monotonic() - start:.0f} s in all")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    run_program(main)
