"""Train on hosts that are reached by ssh; run it again to go on.

    python -m launch.hosts HOST,HOST,... CONFIG [section.key=value ...]

All of them have one disk with this checkout, data and run folder, under the same path. Exit codes are those of
launch/torchrun.sh. What is set here of cluster.env's variables, and all ONEFLOW_*, is set on the hosts.

ONEFLOW_MIN_NODES    on so many it goes on, without those that do not answer or are unfit; unset: all
ONEFLOW_HEALTH=off   no health check before
ONEFLOW_EXCLUDE      hosts that a health check found unfit, one a line; left out (runs/excluded_nodes)
ONEFLOW_REMOTE       a program that runs a command line on a host, as `ssh`: its words, then come the host and the line
launch/node.sh has the other variables.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from launch.attempt import AGAIN, FAILED, LATER, SECRETS, VARIABLES, end, excluded_nodes, least_nodes
from oneflow_dist.runtime import run_program

ROOT = Path(__file__).parents[1]
SSH = "ssh -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=5 -o ServerAliveCountMax=3"
ANSWER_SECONDS = 30.0  # for a host that is asked whether it is there
WAIT_SECONDS = 60.0  # from the end on the first host to that on the others, which may be saving
KILL_SECONDS = 10.0
POLL_SECONDS = 0.1
STOPS = {signal.SIGTERM: "TERM", signal.SIGINT: "TERM", signal.SIGHUP: "HUP", signal.SIGUSR1: "USR1"}


class Launcher:
    """Starts a program on hosts and waits for all of them; signals that this process gets are theirs, too."""

    def __init__(self) -> None:
        self.told = ""  # the signal that has come last
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        for number in STOPS:
            signal.signal(number, self._hear)

    def run(self, hosts: Sequence[str], words: Sequence[str], environment: dict[str, str]) -> int:
        """`launch/node.sh WORDS` on every host; 0, or the exit code of the first that failed. 2 goes before others."""
        if self.told:
            return 0
        for rank, host in enumerate(hosts):
            own = {**environment, "NNODES": str(len(hosts)), "NODE_RANK": str(rank), "ONEFLOW_NODE": host}
            self._running[host] = _start(host, ["launch/host.sh", "launch/node.sh", *words], own)
        codes: list[int] = []
        deadline = float("inf")
        while self._running:
            time.sleep(POLL_SECONDS)
            for host, process in list(self._running.items()):
                if process.poll() is not None:
                    assert process.stdin is not None
                    process.stdin.close()
                    codes.append(process.returncode)
                    del self._running[host]
                    deadline = min(deadline, time.monotonic() + WAIT_SECONDS)
            if time.monotonic() > deadline + KILL_SECONDS:
                for process in self._running.values():  # the line to its host is dead
                    process.kill()
            elif time.monotonic() > deadline:
                self._send("KILL")
        return FAILED if FAILED in codes else next(filter(None, codes), 0)

    def _hear(self, number: int, _: FrameType | None) -> None:
        self.told = STOPS[signal.Signals(number)]
        self._send(self.told)

    def _send(self, name: str) -> None:
        for process in self._running.values():
            assert process.stdin is not None
            with suppress(OSError):  # it has ended
                os.write(process.stdin.fileno(), f"{name}\n".encode())


def launch(hosts: Sequence[str], words: Sequence[str]) -> int:
    """Attempt after attempt on the hosts that are there, until `launch/attempt.py` says that it is enough."""
    launcher, started = Launcher(), time.strftime("%Y%m%d-%H%M%S")
    common = {"ONEFLOW_LAUNCH": os.environ.get("ONEFLOW_LAUNCH", started), "ONEFLOW_NODES": str(len(hosts))}
    least = least_nodes(len(hosts))
    while True:
        there = answering([host for host in hosts if least == len(hosts) or host not in excluded_nodes()])
        gone = ", ".join(host for host in hosts if host not in there)
        if len(there) < least:
            print(f"{gone}: no answer, or unfit; {len(there)} of {least} nodes are left; to go on: the same command")
            return LATER
        if gone:
            print(f"going on with {len(there)} of {len(hosts)} nodes, without {gone}", flush=True)
        head = there[0]
        begun = subprocess.run(
            _command(head, ["launch/node.sh", "begin", *words], {**common, "NNODES": str(len(there))}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if begun.returncode:
            if begun.returncode != FAILED and head not in answering([head]):
                continue  # it has gone in between
            return begun.returncode
        port, folder = begun.stdout.split()
        address = head.rpartition("@")[2]
        environment = {**common, "MASTER_ADDR": address, "MASTER_PORT": port, "ONEFLOW_ATTEMPT": folder}
        code = 0
        for program in ("health", "train"):
            if code == 0 and (program, os.environ.get("ONEFLOW_HEALTH")) != ("health", "off"):
                code = launcher.run(there, [program, *words], environment)
        action = end(Path(folder), code, "a signal" if launcher.told else "")
        if action != AGAIN:
            return action


def answering(hosts: Sequence[str]) -> list[str]:
    """Those that run a command, all asked at once."""
    asked = {host: subprocess.Popen(_command(host, ["true"], {}), stdin=subprocess.DEVNULL) for host in hosts}
    deadline = time.monotonic() + ANSWER_SECONDS
    while any(process.poll() is None for process in asked.values()) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    for process in asked.values():
        process.kill()  # whoever has not answered
        process.wait()
    return [host for host, process in asked.items() if process.returncode == 0]


def _start(host: str, words: Sequence[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(_command(host, words, environment), stdin=subprocess.PIPE, start_new_session=True)


def _command(host: str, words: Sequence[str], environment: dict[str, str]) -> list[str]:
    """What is run here to run `words` on a host, in this folder."""
    shared = {name: os.environ[name] for name in os.environ if VARIABLES.match(name) and not SECRETS.search(name)}
    assignments = [f"{name}={value}" for name, value in {**shared, **environment}.items()]
    line = f"cd {shlex.quote(str(ROOT))} && exec env {shlex.join([*assignments, *words])}"
    return [*shlex.split(os.environ.get("ONEFLOW_REMOTE", SSH)), host, line]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("hosts", help="names or addresses, by commas; the first that is there has rank 0")
    parser.add_argument("config", help="TOML file, as configs/oneflow_8b.toml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values are TOML")
    args = parser.parse_intermixed_args()
    os.environ.setdefault("ONEFLOW_COMMAND", shlex.join(["python", "-m", "launch.hosts", *sys.argv[1:]]))
    sys.exit(launch(args.hosts.split(","), [args.config, *args.overrides]))


if __name__ == "__main__":
    run_program(main)
