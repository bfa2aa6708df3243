"""What belongs to one start of a run: `begin` writes down what is started, `end` decides what becomes of it.

    python launch/attempt.py begin CONFIG [section.key=value ...]       prints a free port, and the folder that it made
    python3 launch/attempt.py end FOLDER --code N [--told SIGNAL]       prints a line; the exit code says what to do

RUN/launches/NAME/ has the logs of the ranks and a folder for each attempt: the first start, and those that followed
when the scheduler had put the job back into its queue. `end` runs on the host, outside of the run's container, so it
needs Python 3.8 and nothing else.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# Exit codes of `end`. LATER: put it back into the queue, or type the same again; AGAIN: at once, where it is.
FINISHED, GAVE_UP, FAILED, LATER, AGAIN = 0, 1, 2, 75, 76
MAX_IDLE = 3  # attempts in a row that die and save nothing new
# What of the environment is written down: what is known to matter, and never what may open a door.
VARIABLES = re.compile("(CUDA|GLOO|HF_HUB_OFFLINE|NCCL|OMP|ONEFLOW|PYTORCH|SLURM|TORCH|TRITON|UCX)")
SECRETS = re.compile("JWT|KEY|PASS|SECRET|TOKEN")


def begin(arguments: list[str]) -> None:
    """Make the folder of this attempt, with all that it takes to repeat it.

    Raises:
        ValueError: the config cannot be read, another process trains in its folder, the port is taken, or
            ONEFLOW_MIN_NODES is no number of nodes.
        OSError: the run folder cannot be written.
    """
    from oneflow_dist.config import load_config, write_config

    config = load_config(arguments[0], arguments[1:])
    num_nodes = int(os.environ.get("NNODES", "1"))
    sizes = {"nodes": num_nodes, "all_nodes": int(os.environ.get("ONEFLOW_NODES", num_nodes))}
    least_nodes(sizes["all_nodes"])
    run = Path(config.run.folder).resolve()
    refuse_company(run)
    launch = run / "launches" / os.environ.get("ONEFLOW_LAUNCH", time.strftime("%Y%m%d-%H%M%S"))
    folder = launch / f"attempt-{len(attempts_of(launch))}"
    port = free_port(os.environ.get("ONEFLOW_PORT", ""))
    folder.mkdir(parents=True)
    versions = describe_versions()
    for line in changes_since(run, versions):
        print(line, file=sys.stderr)
    (folder / "config.toml").write_text(write_config(config))
    (folder / "changes.diff").write_bytes(_git("diff", "HEAD"))
    names = sorted(name for name in os.environ if VARIABLES.match(name) and not SECRETS.search(name))
    (folder / "environment.txt").write_text("".join(f"{name}={os.environ[name]}\n" for name in names))
    command = os.environ.get("ONEFLOW_COMMAND") or " ".join(["launch/attempt.py", "begin", *arguments])
    table = {"command": command, "run": str(run), "host": socket.gethostname(), "began": time.strftime("%F %T %z")}
    write(folder, {**table, **versions, **sizes, "saved_before": last_saved(run)})
    print(port, folder)


def end(folder: Path, code: int, told: str) -> int:
    """Say in a line how an attempt has ended, and what follows; returns the exit code for it."""
    attempt = json.loads((folder / "attempt.json").read_text())
    run = Path(attempt["run"])
    state, message = verdict_of(folder, code)
    write(folder, {**attempt, "ended": time.strftime("%F %T %z"), "state": state, "saved_after": last_saved(run)})
    files = [path / "attempt.json" for path in attempts_of(folder.parent)]
    attempts = [json.loads(file.read_text()) for file in files if file.exists()]  # one may have been broken off
    least = least_nodes(attempt["all_nodes"])
    action, reason = decide(state, told, attempts, int(os.environ.get("ONEFLOW_REQUEUES", "50")), least)
    saved = last_saved(run) or "nothing saved"
    print(f"{folder}: {state}{': ' if message else ''}{message}; {saved}; {reason}", flush=True)
    return action


def decide(state: str, told: str, attempts: list[dict[str, Any]], budget: int, least: int = 1) -> tuple[int, str]:
    """What follows an attempt, and why.

    Args:
        state: of `oneflow_dist.verdict`, or "died" where no rank has told anything.
        told: the signal that the launcher itself has got. SIGTERM is for good: a cancelled job stays cancelled, and
            that of a node that SLURM has given up is put back into the queue by SLURM.
        attempts: of this launch, this one the last.
        budget: of restarts.
        least: nodes on which it goes on when others are lost.
    """
    num_nodes, num_all = (attempts[-1].get(key, 1) for key in ("nodes", "all_nodes"))
    if state == "finished":
        return FINISHED, "nothing is left to do"
    if state == "failed" and num_nodes == num_all:
        return FAILED, "mend it, and start again"
    if told == "TERM":
        return GAVE_UP, "cancelled, or SLURM starts it again itself"
    if len(attempts) > budget:
        return GAVE_UP, f"ONEFLOW_REQUEUES ({budget}) restarts are used up; the same command goes on"
    if state == "failed":  # the layout may not suit so few, or they have too little memory
        return LATER, f"that was on {num_nodes} of {num_all} nodes; to go on: all of them, by the same command"
    if state == "unfit" and not told and least < num_nodes:
        return AGAIN, "starting again without what is unfit"
    if told or state in ("stopped", "unfit"):
        return LATER, "to go on: the same command, which a job gives itself"
    num_idle = 0
    for attempt in reversed(attempts):
        if attempt.get("state") not in ("died", "hung") or attempt["saved_after"] != attempt["saved_before"]:
            break
        num_idle += 1
    if num_idle == MAX_IDLE:
        return GAVE_UP, f"{MAX_IDLE} attempts in a row have died without saving anything new; the logs say why"
    if num_idle == MAX_IDLE - 1:
        return LATER, "to go on: perhaps on other nodes"
    return AGAIN, "starting again"


def verdict_of(folder: Path, code: int) -> tuple[str, str]:
    """How an attempt has ended: what would fail again counts most, then what rank 0 says of the whole run."""
    paths = sorted(folder.glob("verdict-*.json"), key=lambda path: int(path.stem.split("-")[1]))
    verdicts = [json.loads(path.read_text()) for path in paths]
    for state in ("failed", "finished", "stopped", "unfit", "hung"):
        for verdict in verdicts:
            if verdict["state"] == state:
                return state, verdict["message"]
    if code == FAILED:  # before there were ranks
        return "failed", "see above"
    return "died", f"exit code {code}, see {folder.parent}/rank-*.log"


def least_nodes(num_nodes: int) -> int:
    """On how many of its nodes a launch goes on; without ONEFLOW_MIN_NODES on all.

    Raises:
        ValueError: ONEFLOW_MIN_NODES is none of 1, 2, ..., all of them.
    """
    wanted = os.environ.get("ONEFLOW_MIN_NODES") or str(num_nodes)
    if not wanted.isdigit() or not 1 <= int(wanted) <= num_nodes:
        raise ValueError(f"ONEFLOW_MIN_NODES: {wanted}, but there are {num_nodes} nodes; set 1 to {num_nodes}")
    return int(wanted)


def excluded_nodes() -> list[str]:
    """Those that a health check has found unfit."""
    path = Path(os.environ.get("ONEFLOW_EXCLUDE", "runs/excluded_nodes"))
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.split()[0] for line in lines if line.strip() and not line.startswith("#")]


def attempts_of(launch: Path) -> list[Path]:
    """The folders of a launch's attempts, in order."""
    return sorted(launch.glob("attempt-*"), key=lambda path: int(path.name.split("-")[1]))


def last_saved(run: Path) -> str:
    """The name of the newest checkpoint of a run; empty without one."""
    path = run / "last_checkpoint"
    return path.read_text().strip() if path.exists() else ""


def describe_versions() -> dict[str, str]:
    """The code, torch and Python; an image knows its commit by ONEFLOW_COMMIT."""
    from importlib.metadata import version

    commit = _git("rev-parse", "HEAD").decode().strip() or os.environ.get("ONEFLOW_COMMIT", "")
    return {"commit": commit, "torch": version("torch"), "python": platform.python_version()}


def changes_since(run: Path, versions: dict[str, str]) -> list[str]:
    """Lines for what is not as it was when the run was last started."""
    paths = sorted(run.glob("launches/*/attempt-*/attempt.json"), key=lambda path: path.stat().st_mtime)
    if not paths:
        return []
    before = json.loads(paths[-1].read_text())
    changed = [key for key in versions if before.get(key, versions[key]) != versions[key]]
    return [f"from here on {key} {versions[key]}, before {before[key]}" for key in changed]


def refuse_company(run: Path) -> None:
    """A run holds a lock on its metrics while it lives; it would refuse us too, when all ranks have loaded everything.

    Raises:
        ValueError: somebody holds it.
    """
    path = run / "metrics.jsonl"
    if path.exists():
        with path.open("a") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"{run}: another process is running here; wait for it, end it, or name another"
                ) from None


def free_port(wanted: str) -> int:
    """A port that nothing listens on here.

    Raises:
        ValueError: the one that is wanted is taken.
    """
    with socket.socket() as probe:
        try:
            probe.bind(("", int(wanted or 0)))
        except OSError as error:
            raise ValueError(
                f"ONEFLOW_PORT: {wanted}: is taken on {socket.gethostname()} ({error.strerror}); "
                "name another, or none: then a free one is found"
            ) from error
        return int(probe.getsockname()[1])


def write(folder: Path, table: dict[str, Any]) -> None:
    """Replace attempt.json in one instant."""
    partial = folder / "attempt.json.partial"
    partial.write_text(json.dumps(table, indent=1) + "\n")
    partial.replace(folder / "attempt.json")


def _git(*arguments: str) -> bytes:
    if shutil.which("git") is None:
        return b""
    return subprocess.run(["git", *arguments], capture_output=True, check=False).stdout


def main() -> None:
    """Entry point."""
    if sys.argv[1:2] == ["end"]:
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("end")
        parser.add_argument("folder", type=Path)
        parser.add_argument("--code", type=int, required=True, help="of the programs that ran")
        parser.add_argument("--told", default="", help="TERM, USR1, ...: what the launcher itself has been sent")
        args = parser.parse_args()
        sys.exit(end(args.folder, args.code, args.told))
    from oneflow_dist.runtime import run_program

    run_program(lambda: begin(sys.argv[2:]))


if __name__ == "__main__":
    main()
