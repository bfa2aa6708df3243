"""Nodes that fail: each is a network namespace of this machine with a link of its own to a switch. Needs root.

    python tests/torture/nodes.py scratch                                 all of it, some minutes
    python tests/torture/nodes.py scratch --only "slow link" "link down"

Everything is started by launch/node.sh, as a scheduler does it on every node: runs of configs/debug.toml, and health
checks. Each line of the table is what happened to a node, what became of the run, and the seconds it took.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from oneflow_dist.runtime import run_program
from tests.launching import ROOT, read_metrics, wait_for_step, without_timings
from tests.processes import is_rank

PATIENCE = 120.0  # seconds, for a run to come to a moment, and to end
STEPS = 120
RUN = (f"train.steps={STEPS}", "checkpoint.every_steps=20", "sampling.every_steps=0")
DOWN_SECONDS = 20.0
HANG_SECONDS = 4.0
ADDRESS = "10.77.0"  # of the network; no other machine sees it
PORT = "29500"
Words = Sequence[str | Path]
NUMBERS = itertools.count()  # of networks


class Network:
    """Nodes node0, node1, ... with links to one switch. All of it, the switch too, lies in namespaces of its own."""

    def __init__(self, num_nodes: int):
        """Nothing is made before `with`."""
        self.prefix = f"oneflow{os.getpid()}-{next(NUMBERS)}"
        self.nodes = range(num_nodes)

    def __enter__(self) -> Network:
        switch = self.space("switch")
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "switch", "up", "type", "bridge")
        for node in self.nodes:
            _ip("netns", "add", self.space(node))
            link = ("name", f"port{node}", "type", "veth", "peer", "name", "eth0", "netns", self.space(node))
            _ip("-n", switch, "link", "add", *link)
            _ip("-n", switch, "link", "set", f"port{node}", "master", "switch", "up")
            _ip("-n", self.space(node), "address", "add", f"{ADDRESS}.{node + 1}/24", "dev", "eth0")
            _ip("-n", self.space(node), "link", "set", "lo", "up")
            self.set_link(node, "up")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for name in (*self.nodes, "switch"):
            self.kill(name)
            subprocess.run(["ip", "netns", "delete", self.space(name)], check=False, stderr=subprocess.DEVNULL)

    def space(self, name: int | str) -> str:
        """The namespace of a node, or of the switch."""
        return f"{self.prefix}-{name}"

    def start(self, node: int, command: Words, output: Path, **environment: str) -> subprocess.Popen[bytes]:
        """Start a program on a node."""
        words = ["ip", "netns", "exec", self.space(node), *map(str, command)]
        own = {"ONEFLOW_NODE": f"node{node}", "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"}
        env = {**os.environ, **own, **environment}
        with output.open("wb") as file:
            return subprocess.Popen(words, stdout=file, stderr=file, cwd=ROOT, env=env, start_new_session=True)

    def set_link(self, node: int, state: str) -> None:
        """Plug the cable of a node in ("up"), or out ("down")."""
        _ip("-n", self.space(node), "link", "set", "eth0", state)

    def limit(self, node: int, rate: str) -> None:
        """Let the link of a node send no faster, as "50mbit"."""
        shaped = ("qdisc", "add", "dev", "eth0", "root", "tbf", "rate", rate, "burst", "64kb", "latency", "50ms")
        subprocess.run(["tc", "-n", self.space(node), *shaped], check=True)

    def lift(self, node: int) -> None:
        """End what `limit` has set."""
        subprocess.run(["tc", "-n", self.space(node), "qdisc", "delete", "dev", "eth0", "root"], check=True)

    def lose(self, node: int) -> None:
        """As when its power fails: no process says goodbye, and nothing is ever started there again."""
        self.set_link(node, "down")
        self.kill(node)
        _ip("netns", "delete", self.space(node))

    def kill(self, node: int | str) -> None:
        """SIGKILL to all processes of a node."""
        end = subprocess.run(["ip", "netns", "pids", self.space(node)], capture_output=True, text=True, check=False)
        for pid in end.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)

    def ranks(self, node: int) -> list[int]:
        """The processes of a node that train."""
        end = subprocess.run(["ip", "netns", "pids", self.space(node)], capture_output=True, text=True, check=True)
        return [int(pid) for pid in end.stdout.split() if is_rank(int(pid))]


@dataclass(frozen=True)
class World:
    """Where the cells of a table work, and with which data."""

    folder: Path
    overrides: Sequence[str]

    def launch(
        self, network: Network, what: str, name: str, *overrides: str, first: Words = (), **environment: str
    ) -> list[subprocess.Popen[bytes]]:
        """Start launch/node.sh on every node, one rank on each; `first` comes before it on the last one."""
        shared = {"NNODES": str(len(network.nodes)), "MASTER_ADDR": f"{ADDRESS}.1", "MASTER_PORT": PORT}
        shared |= {"ONEFLOW_PROCESSES": "1", "ONEFLOW_EXCLUDE": str(self.folder / name / "excluded"), **environment}
        words = ["launch/node.sh", what, "configs/debug.toml", f"run.folder={self.run(name)}"]
        self.run(name).mkdir(parents=True, exist_ok=True)
        return [
            network.start(
                node,
                [*(first if node == network.nodes[-1] else ()), *words, *self.overrides, *overrides],
                self.output(name, node),
                NODE_RANK=str(node),
                **shared,
            )
            for node in network.nodes
        ]

    def run(self, name: str) -> Path:
        return self.folder / name / "run"

    def output(self, name: str, node: int) -> Path:
        return self.folder / name / f"node{node}"

    def metrics(self, name: str) -> list[dict[str, Any]]:
        """What a run has written for each step, but for the times."""
        return without_timings(read_metrics(self.run(name)))

    def unbroken(self) -> list[dict[str, Any]]:
        """The same of two nodes of which none fails; trained when it is first asked for."""
        if not (self.folder / "unbroken").exists():
            with Network(2) as network:
                end_well(self.launch(network, "train", "unbroken", *RUN))
        return self.metrics("unbroken")


def link_down(world: World) -> str:
    """A cable is out for a while."""
    with Network(2) as network:
        agents = world.launch(network, "train", "link-down", *RUN)
        wait_for_step(world.run("link-down"), 10)
        network.set_link(1, "down")
        time.sleep(DOWN_SECONDS)
        steps = len(world.metrics("link-down"))
        network.set_link(1, "up")
        end_well(agents)
    check(steps < STEPS, f"the link was down after step {STEPS} only")
    check(world.metrics("link-down") == world.unbroken(), "other metrics than those of an unbroken run")
    return f"waited after step {steps}, then went on; metrics bitwise those of an unbroken run"


def rank_killed(world: World) -> str:
    """A rank dies, of a fault of its own: the launchers end, and what has started them starts them again."""
    with Network(2) as network:
        agents = world.launch(network, "train", "rank-killed", *RUN)
        wait_for_step(world.run("rank-killed"), 30)
        (rank,) = network.ranks(1)
        os.kill(rank, signal.SIGKILL)
        start = time.monotonic()
        codes = [agent.wait(PATIENCE) for agent in agents]
        seconds = time.monotonic() - start
        end_well(world.launch(network, "train", "rank-killed", *RUN))
    resumed = re.findall(r"continuing from \S*(step-\d+)", world.output("rank-killed", 0).read_text())
    check(all(codes) and resumed != [], f"launchers ended with {codes}, resumed {resumed}")
    check(world.metrics("rank-killed") == world.unbroken(), "other metrics than those of an unbroken run")
    return (
        f"both launchers ended after {seconds:.0f} s; again from {resumed[0]}, metrics bitwise those of an unbroken run"
    )


def node_lost(world: World) -> str:
    """A node goes without a word: no process of it says goodbye."""
    with Network(2) as network:
        agents = world.launch(network, "train", "node-lost", *RUN, f"guard.hang_seconds={HANG_SECONDS}")
        wait_for_step(world.run("node-lost"), 10)
        network.set_link(1, "down")
        network.kill(1)
        start = time.monotonic()
        code = agents[0].wait(PATIENCE)
        seconds = time.monotonic() - start
    said = world.output("node-lost", 0).read_text()
    check(code != 0 and seconds < 10 * HANG_SECONDS, f"ended with {code} after {seconds:.0f} s")
    check(re.search(r"error: .*rank 1 .*silent", said) is not None, "the lost rank was not named")
    return f"the other ended after {seconds:.0f} s with code {code}: rank 1 on node1 is silent"


def two_layouts(world: World) -> str:
    """The same ranks on one node."""
    with Network(1) as network:
        end_well(world.launch(network, "train", "one-node", *RUN, ONEFLOW_PROCESSES="2"))
    check(world.metrics("one-node") == world.unbroken(), "other metrics than on two nodes")
    return "metrics bitwise the same as on 2 nodes x 1 rank"


def all_well(world: World) -> str:
    """Four nodes that are alike."""
    with Network(4) as network:
        return health(world, network, "all-well", 0, [])


def slow_link(world: World) -> str:
    """One of four links sends a fraction of what the others do."""
    with Network(4) as network:
        network.limit(2, "50mbit")
        return health(world, network, "slow-link", 3, ["node2"])


def clock_off(world: World) -> str:
    """The clock of the last node is a day ahead; in all its Pythons, as libfaketime keeps them from sleeping."""
    hook = world.folder / "day/sitecustomize.py"
    hook.parent.mkdir()
    hook.write_text("import time\nnow = time.time\ntime.time = lambda: now() + 86400.0\n")
    path = os.pathsep.join([str(hook.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    with Network(3) as network:
        return health(world, network, "clock-off", 3, ["node2"], first=["env", f"PYTHONPATH={path}"])


def folder_not_shared(world: World) -> str:
    """The run folder of the last node is on a disk of its own."""
    own_disk = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', world.run("not-shared")]
    with Network(2) as network:
        return health(world, network, "not-shared", 2, [], first=own_disk)


def health(world: World, network: Network, name: str, code: int, nodes: list[str], first: Words = ()) -> str:
    """What the health check says; it must end with `code` and exclude `nodes`."""
    agents = world.launch(network, "health", name, first=first)
    codes = [agent.wait(PATIENCE) for agent in agents]
    said = re.findall(r"^(?:error: node\d|health: ).*", world.output(name, 0).read_text(), re.MULTILINE)
    path = world.folder / name / "excluded"
    excluded = [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []
    check(codes[0] == code and excluded == nodes, f"codes {codes}, excluded {excluded}")
    return said[0]


CELLS: dict[str, Callable[[World], str]] = {
    "nothing, one node": two_layouts,
    "link down": link_down,
    "rank killed": rank_killed,
    "node lost": node_lost,
    "nothing, health": all_well,
    "slow link": slow_link,
    "clock off": clock_off,
    "folder not shared": folder_not_shared,
}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path, help="folder for the runs; it must not exist")
    parser.add_argument("--only", nargs="+", choices=CELLS, default=list(CELLS), metavar="EVENT")
    parser.add_argument("--set", nargs="+", default=[], metavar="section.key=value", help="for every run")
    args = parser.parse_args()
    args.scratch.mkdir(parents=True)
    world = World(args.scratch.resolve(), args.set)
    bad = 0
    for name in args.only:
        start = time.monotonic()
        try:
            verdict = CELLS[name](world)
        except (ValueError, OSError, subprocess.SubprocessError) as error:
            verdict, bad = f"WRONG: {error}", bad + 1
        print(f"{name:18} {verdict}, {time.monotonic() - start:.0f} s", flush=True)
    if bad:
        raise ValueError(f"{args.scratch}: {bad} of {len(args.only)} ended otherwise than they should; see the outputs")


def check(is_so: bool, otherwise: str) -> None:
    """Raise a ValueError if it is not so."""
    if not is_so:
        raise ValueError(otherwise)


def end_well(agents: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait for the launchers of all nodes."""
    codes = [agent.wait(PATIENCE) for agent in agents]
    check(not any(codes), f"launchers ended with {codes}")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


if __name__ == "__main__":
    run_program(main)
