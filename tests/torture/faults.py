"""What becomes of a run on two nodes of two ranks when something breaks, time after time. Needs root.

    python tests/torture/faults.py scratch                                  every fault twenty times, an hour or two
    python tests/torture/faults.py scratch --only "rank killed" --times 3
    python tests/torture/fault_table.py scratch/faults.jsonl docs/results/faults.json    all that has shown, and a plot

Nodes are network namespaces (see nodes.py). launch/hosts.py starts runs of configs/debug.toml on them, as by ssh; the
fault comes after a step and a part of a second that the number of the repetition chooses, on the one node and on the
other by turns. Each run leaves a line in scratch/faults.jsonl; those that are there already are not made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from oneflow_dist.progress import complete_steps
from oneflow_dist.runtime import run_program
from tests.launching import ROOT, read_checkpoint, read_metrics, without_timings
from tests.processes import wait_until
from tests.torture.nodes import ADDRESS, Network

STEPS = 40
RUN = (
    f"train.steps={STEPS}",
    "checkpoint.every_steps=10",
    "sampling.every_steps=0",
    "optim.eps=1e-3",  # near the size of the gradients, as in tests/parallel: what rounding is stays rounding
)
NODES = (f"{ADDRESS}.1", f"{ADDRESS}.2")
HANG_SECONDS = 5.0  # where something is lost; elsewhere a step may take long
LONG_SECONDS = 60.0
CUT_SECONDS = 20.0
PATIENCE = 240.0  # until a run has ended
CLOSE = 1e-5  # to the unbroken run, where the same sums are taken in another order
REMOTE = """#!/bin/sh
export PYTHONPATH={hook}:{root}:{root}/kernels
exec ip netns exec {prefix}-$((${{1##*.}} - 1)) sh -c "$2"
"""
CLOCK = """import os, time
now, flag = time.time, "{folder}/day-" + os.environ.get("ONEFLOW_NODE", "")
time.time = lambda: now() + (86400.0 if os.path.exists(flag) else 0.0)
"""


@dataclass(kw_only=True)
class Outcome:
    """One run, and what it did."""

    fault: str
    number: int  # of the repetition
    node: int  # which was hit
    step: int = 0  # that had been made then
    did: str = ""
    seconds: float = 0.0  # from the fault until it was further than ever, or had ended
    said: str = ""  # the line that tells of it
    wrong: list[str] = field(default_factory=list)


class Trial:
    """A run on two nodes that something is about to happen to."""

    def __init__(self, folder: Path, network: Network, outcome: Outcome, overrides: Sequence[str]):
        self.folder, self.network, self.outcome, self.overrides = folder, network, outcome, overrides
        self.run, self.log = folder / "run", folder / "log"
        self.random = random.Random(f"{outcome.fault} {outcome.number}")
        self.node = outcome.node
        folder.mkdir(parents=True)
        (folder / "hook").mkdir()
        (folder / "hook/sitecustomize.py").write_text(CLOCK.format(folder=folder))
        remote = folder / "remote"
        remote.write_text(REMOTE.format(hook=folder / "hook", root=ROOT, prefix=network.prefix))
        remote.chmod(0o755)

    def start(self, *overrides: str, **environment: str) -> subprocess.Popen[bytes]:
        """The launcher, which runs on neither node."""
        own = {"ONEFLOW_REMOTE": str(self.folder / "remote"), "ONEFLOW_PROCESSES": "2", "ONEFLOW_LAUNCH": "torture"}
        own |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0", "ONEFLOW_HEALTH": "off"}
        own |= {"ONEFLOW_EXCLUDE": str(self.folder / "excluded"), **environment}
        command = [sys.executable, "-m", "launch.hosts", ",".join(NODES), "configs/debug.toml"]
        command += [f"run.folder={self.run}", *RUN, *self.overrides, *overrides]
        with self.log.open("ab") as log:
            return subprocess.Popen(command, cwd=ROOT, env={**os.environ, **own}, stdout=log, stderr=log)

    def wait_for_moment(self, first: int = 4, last: int = STEPS - 6) -> None:
        """Until a step and a part of a second that the repetition's number chooses."""
        step = self.random.randint(first, last)
        wait_until(lambda: self.num_steps >= step, f"step {step} of {self.run}", PATIENCE)
        time.sleep(self.random.uniform(0.0, 0.3))
        self.outcome.step = self.num_steps

    @property
    def num_steps(self) -> int:
        """How many are written down."""
        path = self.run / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def go_on(self, launcher: subprocess.Popen[bytes], since: float) -> None:
        """Wait until the run is further than it was, then for its end, which must be a good one."""
        before = self.outcome.step
        wait_until(lambda: self.num_steps > before or launcher.poll() is not None, "it to go on", PATIENCE)
        self.outcome.seconds = time.monotonic() - since
        self.end(launcher, 0)

    def end(self, launcher: subprocess.Popen[bytes], code: int) -> None:
        """Wait for the launcher, which must end with this code."""
        try:
            found = launcher.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            launcher.send_signal(signal.SIGKILL)
            raise
        self.expect(found == code, f"exit code {found}")

    def expect(self, is_so: bool, otherwise: str) -> None:
        """Note what is not as it should be."""
        if not is_so:
            self.outcome.wrong.append(otherwise)

    def says(self, pattern: str) -> None:
        """A line of the console that has this, and no traceback anywhere, is what is expected."""
        lines = [line for line in self.log.read_text().splitlines() if re.search(pattern, line)]
        self.expect(bool(lines), f"nobody says {pattern!r}")
        self.outcome.said = lines[0].replace(f"{self.folder}/", "") if lines else ""  # the same wherever it is played

    def check_whole(self) -> None:
        """The last checkpoint can be read, and there was no traceback."""
        texts = [path.read_text() for path in (self.log, *self.run.glob("launches/torture/rank-*.log"))]
        self.expect(not any("Traceback" in text for text in texts), "a traceback")
        steps = complete_steps(str(self.run))
        saved = self.run / "last_checkpoint"
        self.expect(bool(steps) == saved.exists(), f"{saved.name} and complete checkpoints {sorted(steps)}")
        if steps:
            newest = steps[max(steps)]
            self.expect(saved.read_text().strip() == newest.name, f"{saved.name} is not {newest.name}")
            tensors = read_checkpoint(newest, self.folder / "whole.pt")
            self.expect(len(tensors) > 20, f"{newest.name} has {len(tensors)} tensors")

    def distance(self, unbroken: Path) -> float:
        """The largest relative difference of a loss to the unbroken run; 0 where every number has the same bits."""
        own, theirs = (without_timings(read_metrics(folder)) for folder in (self.run, unbroken))
        if own == theirs:
            return 0.0
        if [line["step"] for line in own] != [line["step"] for line in theirs]:
            return float("inf")
        return max(abs(a["loss"] - b["loss"]) / abs(b["loss"]) for a, b in zip(own, theirs, strict=True)) or 1e-12


def node_lost(trial: Trial) -> None:
    """A node goes without a word, and does not come back: the other goes on alone."""
    launcher = trial.start(f"guard.hang_seconds={HANG_SECONDS}", ONEFLOW_MIN_NODES="1")
    trial.wait_for_moment()
    since = time.monotonic()
    trial.network.lose(trial.node)
    trial.go_on(launcher, since)
    trial.says(rf"going on with 1 of 2 nodes, without {re.escape(NODES[trial.node])}")
    trial.outcome.did = "went on with the other node"


def rank_killed(trial: Trial) -> None:
    """A rank dies, of a fault of its own."""
    launcher = trial.start(f"guard.hang_seconds={HANG_SECONDS}")
    trial.wait_for_moment()
    rank = trial.random.choice(trial.network.ranks(trial.node))
    since = time.monotonic()
    os.kill(rank, signal.SIGKILL)
    trial.go_on(launcher, since)
    trial.says(r"error: rank \d on .*SIGKILL")
    trial.outcome.did = "started again on both nodes"


def link_cut(trial: Trial) -> None:
    """A cable is out for a while."""
    launcher = trial.start(f"guard.hang_seconds={LONG_SECONDS}")
    trial.wait_for_moment()
    trial.network.set_link(trial.node, "down")
    time.sleep(CUT_SECONDS)
    trial.outcome.step = trial.num_steps
    trial.network.set_link(trial.node, "up")
    trial.go_on(launcher, time.monotonic())
    trial.outcome.did = "waited, went on"


def link_slow(trial: Trial) -> None:
    """A link carries 1 Mbit/s for a while."""
    launcher = trial.start(f"guard.hang_seconds={LONG_SECONDS}")
    trial.wait_for_moment(first=14)
    since = time.monotonic()
    trial.network.limit(trial.node, "1mbit")
    wait_until(lambda: "times as long" in trial.log.read_text() or launcher.poll() is not None, "a line", PATIENCE)
    trial.outcome.seconds = time.monotonic() - since
    trial.network.lift(trial.node)
    trial.end(launcher, 0)
    trial.says(r"times as long as usual.* a link or a device has become slow")
    trial.outcome.did = "said it, went on"


def clock_ahead(trial: Trial) -> None:
    """The clock of a node jumps a day ahead while it trains."""
    launcher = trial.start(f"guard.hang_seconds={HANG_SECONDS}")
    trial.wait_for_moment()
    since = time.monotonic()
    (trial.folder / f"day-{NODES[trial.node]}").touch()
    trial.go_on(launcher, since)
    trial.outcome.did = "went on"


def clock_off(trial: Trial) -> None:
    """The clock of a node is a day ahead from the start."""
    since = time.monotonic()
    (trial.folder / f"day-{NODES[trial.node]}").touch()
    refuse(trial, since, r"error: 10\.77\.0\.\d: its clock is 86\d+ s")


def link_bad(trial: Trial) -> None:
    """A link carries 1 Mbit/s from the start."""
    trial.network.limit(trial.node, "1mbit")
    refuse(trial, time.monotonic(), r"error: 10\.77\.0\.1, 10\.77\.0\.2: links between nodes carry .* kB/s")


def refuse(trial: Trial, since: float, said: str) -> None:
    """The health check ends the launch before it has begun."""
    trial.end(trial.start(ONEFLOW_HEALTH="on"), 2)
    trial.outcome.seconds = time.monotonic() - since
    trial.says(said)
    lines = re.findall("^error: .*", trial.log.read_text(), re.MULTILINE)
    trial.expect(len(lines) == 1, f"{len(lines)} lines of errors")
    trial.expect(not (trial.run / "metrics.jsonl").exists(), "it has trained")
    trial.outcome.did = "did not start"


def disk_full(trial: Trial) -> None:
    """Where a node writes checkpoints there are suddenly 64 KiB; later there is room, and somebody starts it again."""
    folder = trial.run / "checkpoints"

    def fill(pid: int) -> None:
        words = ["nsenter", f"--target={pid}", "--mount", "mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
        subprocess.run(words, check=True)

    break_disk(trial, lambda pids: fill(pids[0]), "^error: .*checkpoint (needs|could not be written)")


def disk_fills(trial: Trial) -> None:
    """No file of a rank can outgrow 20 kB: what is seen of a full disk when the room is gone while it writes."""

    def fill(pids: list[int]) -> None:
        subprocess.run(["prlimit", f"--pid={trial.random.choice(pids)}", "--fsize=20000"], check=True)

    break_disk(trial, fill, "^error: a checkpoint could not be written: .*(disk is full, or a quota|File too large)")


def break_disk(trial: Trial, fill: Callable[[list[int]], None], said: str) -> None:
    """The run ends with one line; there is room again, and the same command goes on."""
    launcher = trial.start(f"guard.hang_seconds={HANG_SECONDS}")
    trial.wait_for_moment(first=12)
    since = time.monotonic()
    fill(trial.network.ranks(trial.node))
    trial.end(launcher, 2)
    trial.outcome.seconds = time.monotonic() - since
    trial.says(said)
    lines = re.findall("^error: .*", trial.log.read_text(), re.MULTILINE)
    trial.expect(len(lines) == 1, f"{len(lines)} lines of errors")
    trial.check_whole()
    trial.end(trial.start(), 0)
    trial.outcome.did = "ended; started again it went on"


FAULTS: dict[str, Callable[[Trial], None]] = {
    "node lost": node_lost,
    "rank killed": rank_killed,
    "link cut for 20 s": link_cut,
    "link at 1 Mbit/s": link_slow,
    "link at 1 Mbit/s before the start": link_bad,
    "clock a day ahead": clock_ahead,
    "clock a day ahead before the start": clock_off,
    "disk of a node full": disk_full,
    "disk of a node full while it writes": disk_fills,
}
FEWER = ("node lost",)  # others take sums in the same order, and have the same bits


def play(fault: str, number: int, folder: Path, unbroken: Path, overrides: Sequence[str]) -> Outcome:
    """One repetition."""
    outcome = Outcome(fault=fault, number=number, node=number % 2)
    own = folder / f"{fault.replace(' ', '-').replace('/', '-')}-{number}"
    shutil.rmtree(own, ignore_errors=True)
    try:
        with Network(2) as network:
            trial = Trial(own, network, outcome, overrides)
            FAULTS[fault](trial)
            trial.check_whole()
    except (OSError, subprocess.SubprocessError) as error:  # TimeoutError is one
        outcome.wrong.append(f"{type(error).__name__}: {error}")
        return outcome
    if outcome.did != "did not start":
        distance, bound = trial.distance(unbroken), CLOSE if fault in FEWER else 0.0
        trial.expect(distance <= bound, f"losses differ by {distance:.1e} from the unbroken run")
        outcome.did += f", losses to {CLOSE:g}" if fault in FEWER else ", every number the same"
    return outcome


def read_outcomes(path: Path) -> list[Outcome]:
    """Of all repetitions so far."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [Outcome(**json.loads(line)) for line in lines]


def train_unbroken(folder: Path, overrides: Sequence[str]) -> Path:
    """The run to which nothing happens."""
    run = folder / "unbroken/run"
    if not (run / f"checkpoints/step-{STEPS:08d}/COMPLETE").exists():
        shutil.rmtree(folder / "unbroken", ignore_errors=True)
        with Network(2) as network:
            trial = Trial(folder / "unbroken", network, Outcome(fault="nothing", number=0, node=0), overrides)
            trial.end(trial.start(), 0)
        assert not trial.outcome.wrong, trial.outcome.wrong
    return run


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path, help="folder for the runs")
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS), metavar="FAULT")
    parser.add_argument("--times", type=int, default=20, help="repetitions of each (20)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (2)")
    parser.add_argument("--set", nargs="+", default=[], metavar="section.key=value", help="for every run")
    args = parser.parse_args()
    folder = args.scratch.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "faults.jsonl"
    unbroken = train_unbroken(folder, args.set)
    done = {(outcome.fault, outcome.number) for outcome in read_outcomes(path)}
    todo = [(fault, number) for number in range(args.times) for fault in args.only if (fault, number) not in done]
    with ThreadPoolExecutor(args.jobs) as pool, path.open("a") as file:
        for outcome in pool.map(lambda task: play(*task, folder, unbroken, args.set), todo):
            file.write(json.dumps(dataclasses.asdict(outcome)) + "\n")
            file.flush()
            verdict = f"WRONG: {'; '.join(outcome.wrong)}" if outcome.wrong else outcome.did
            print(f"{outcome.fault} {outcome.number}: {outcome.seconds:.1f} s, {verdict}", flush=True)


if __name__ == "__main__":
    run_program(main)
