"""Mistakes of those who launch: is each one line, soon, and can the run folder be used afterwards?

    python tests/torture/mistakes.py scratch        all of them, two minutes; root, for disks that are full or read-only

Each happens to launch/torchrun.sh with configs/debug.toml on two CPU ranks, health check included. Afterwards it is
taken back, and the same folder must train to its end. The exit code is 1 if anything is not so. A clock that is a day
off needs several nodes: tests/torture/nodes.py has it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from oneflow_dist.runtime import run_program
from tests.launching import ENVIRONMENT, ROOT
from tests.torture.slurm_cluster import Cluster, wait_for

LIMIT = 30.0  # seconds until the line is there and the program has ended
LINE = re.compile(r"(?:error(?: \(rank \d+\))?: |from here on |job \d+: ).*")
RUN = ("train.steps=2", "sampling.every_steps=0")


@dataclass(slots=True)
class Launch:
    """What somebody types: all that is right, until a mistake changes it."""

    folder: Path
    config: str = "configs/debug.toml"
    words: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=lambda: {"ONEFLOW_PROCESSES": "2"})
    command: list[str] = field(default_factory=lambda: ["launch/torchrun.sh"])

    def run(self, limit: float = LIMIT) -> tuple[int | None, str]:
        """Exit code, None if it had to be killed, and output."""
        words = [*self.command, self.config, *RUN, f"run.folder={self.folder}", *self.words]
        env = {**ENVIRONMENT, **{k: v for k, v in self.environment.items() if v != ""}}
        process = subprocess.Popen(
            words,
            cwd=ROOT,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            return None, output
        return process.returncode, output


Mistake = Callable[[Launch, Path], object]  # makes it, in a scratch folder; a context manager takes it back


@contextmanager
def busy_port(launch: Launch, scratch: Path) -> Iterator[None]:
    """ONEFLOW_PORT is taken by somebody else."""
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        launch.environment["ONEFLOW_PORT"] = str(taken.getsockname()[1])
        yield
    launch.environment["ONEFLOW_PORT"] = ""


@contextmanager
def missing_config(launch: Launch, scratch: Path) -> Iterator[None]:
    """A name that does not exist."""
    launch.config, right = "configs/debgu.toml", launch.config
    yield
    launch.config = right


@contextmanager
def unreadable_data(launch: Launch, scratch: Path) -> Iterator[None]:
    """A shard that was cut off while it was copied."""
    cut = scratch / "cut.tar"
    whole = next((ROOT / "data/digits").rglob("*.tar")).read_bytes()
    cut.write_bytes(whole[: len(whole) // 2 + 100])
    (scratch / "mixture.yaml").write_text(
        f"sources: {{cut: {{shards: '{cut}', weight: 1, tasks: {{text_to_image: 1}}}}}}\n"
    )
    launch.words.append(f"data.mixture={scratch / 'mixture.yaml'}")
    yield
    launch.words.pop()


@contextmanager
def gpu_missing(launch: Launch, scratch: Path) -> Iterator[None]:
    """A node whose driver does not show any."""
    right = launch.environment.pop("ONEFLOW_PROCESSES")
    yield
    launch.environment["ONEFLOW_PROCESSES"] = right


@contextmanager
def mounted(launch: Launch, *options: str) -> Iterator[None]:
    """The run folder as a disk of its own."""
    launch.folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", launch.folder], check=True)
    yield
    subprocess.run(["umount", launch.folder], check=True)


def full_disk(launch: Launch, scratch: Path) -> object:
    """There is room for some files, and none for a checkpoint."""
    return mounted(launch, "-o", "size=256k")


def read_only_folder(launch: Launch, scratch: Path) -> object:
    """As an archive is mounted."""
    return mounted(launch, "-o", "ro")


@contextmanager
def unlike_mesh(launch: Launch, scratch: Path) -> Iterator[None]:
    """A mesh for another number of ranks."""
    launch.words.append("parallel.replicate=3")
    yield
    launch.words.pop()


@contextmanager
def missing_variable(launch: Launch, scratch: Path) -> Iterator[None]:
    """A launcher of one's own that forgets RANK."""
    right = launch.command, launch.environment
    launch.command = [sys.executable, "-m", "oneflow_dist.train"]
    launch.environment = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29555"}
    yield
    launch.command, launch.environment = right


@contextmanager
def other_image(launch: Launch, scratch: Path) -> Iterator[None]:
    """The run began with another torch: the line is a warning, and it goes on."""
    launch.run(limit=120.0)
    (path,) = launch.folder.glob("launches/*/attempt-0/attempt.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "torch": "2.9.0"}))
    launch.words.append("train.steps=4")
    yield


@contextmanager
def two_jobs(launch: Launch, scratch: Path) -> Iterator[None]:
    """Another one trains in that folder."""
    launch.words.append("train.steps=100000")
    words = [*launch.command, launch.config, f"run.folder={launch.folder}", *launch.words, "sampling.every_steps=0"]
    env = {**ENVIRONMENT, **launch.environment, "ONEFLOW_HEALTH": "off", "ONEFLOW_LAUNCH": "first"}
    with subprocess.Popen(words, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        wait_for((launch.folder / "metrics.jsonl").exists, "the first one to train")
        yield
        first.terminate()


MISTAKES = {
    "port taken": (busy_port, "ONEFLOW_PORT"),
    "config missing": (missing_config, "debgu.toml"),
    "shard cut off": (unreadable_data, "cut.tar"),
    "no GPU": (gpu_missing, "no GPU"),
    "disk full": (full_disk, "checkpoint.keep"),
    "world size unlike the mesh": (unlike_mesh, "parallel.*3.*WORLD_SIZE.*2"),
    "RANK not set": (missing_variable, "RANK"),
    "another image than before": (other_image, r"torch.*2\.9\.0"),
    "two jobs in one folder": (two_jobs, "another process is running here"),
    "run folder read-only": (read_only_folder, "[Rr]ead-only"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """A mistake, and what was seen of it."""

    mistake: str
    line: str
    code: int | None
    seconds: float
    is_usable: bool
    is_right: bool

    def __str__(self) -> str:
        usable = "yes" if self.is_usable else "NO"
        verdict = "ok" if self.is_right and self.is_usable else "**WRONG**"
        return f"| {self.mistake} | {self.line} | {self.code} | {self.seconds:.0f} | {usable} | {verdict} |"


def make(name: str, scratch: Path) -> Row:
    """Make a mistake, look, take it back, and train in the same folder."""
    mistake, expected = MISTAKES[name]
    launch = Launch(scratch / "run")
    scratch.mkdir(parents=True)
    with mistake(launch, scratch):
        start = time.monotonic()
        code, output = launch.run()
        seconds = time.monotonic() - start
    lines = [line for line in LINE.findall(output) if re.search(expected, line)]
    is_right = code is not None and len(lines) >= 1 and "Traceback" not in output
    is_right = is_right and (code == 0) == (mistake is other_image)
    again, said = launch.run(limit=120.0) if mistake is not two_jobs else (0, "")
    if again:
        print(said)
    shown = lines[0].replace(str(scratch), "...") if lines else output[-200:].replace("\n", " ")
    return Row(name, shown, code, seconds, again == 0, is_right)


def too_many_nodes(scratch: Path) -> Row:
    """SLURM takes the job and never starts it."""
    with Cluster(scratch / "slurm", 2) as cluster:
        start = time.monotonic()
        words = "launch/slurm.sbatch", "--nodes", "9", "configs/debug.toml", f"run.folder={scratch / 'run'}"
        lines = LINE.findall(cluster.run(*words))
        seconds = time.monotonic() - start
        is_right = len(lines) == 1 and re.search("PENDING.*PartitionConfig", lines[0]) is not None
        return Row("more nodes than there are", "; ".join(lines), 0, seconds, not (scratch / "run").exists(), is_right)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path, help="a folder that does not exist yet")
    parser.add_argument("--only", nargs="*", metavar="TEXT", help="only mistakes with one of these in their names")
    args = parser.parse_args()
    scratch = args.scratch.resolve()
    chosen = [name for name in MISTAKES if args.only is None or any(text in name for text in args.only)]
    print("| mistake | line | code | s | usable | |\n| --- | --- | --- | --- | --- | --- |", flush=True)
    rows = []
    for name in chosen:
        rows.append(make(name, scratch / name.replace(" ", "-")))
        print(rows[-1], flush=True)
    if args.only is None:
        rows.append(too_many_nodes(scratch))
        print(rows[-1], flush=True)
    shutil.rmtree(scratch)
    sys.exit(not all(row.is_right and row.is_usable and row.seconds < LIMIT for row in rows))


if __name__ == "__main__":
    run_program(main)
