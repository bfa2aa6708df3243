"""Where in memory a run's copies lie, which ranks are on one node, and is there room?"""

from __future__ import annotations

import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import torch.distributed as dist

from oneflow_dist.config import Config
from oneflow_dist.files import free_bytes, write_whole
from oneflow_dist.progress import checkpoint_folder
from oneflow_dist.runtime import gather_objects, is_main, node_name

# In the run folder: copies of a run that was deleted, or that this one was copied from, are not its own.
ID_FILE = "memory-id"
MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """This rank's place among the nodes, and its node's memory."""

    rank: int
    nodes: tuple[str, ...]  # of each rank
    folder: Path  # of this run's copies on this node
    had_copies: bool  # an earlier start of this run has kept some

    @property
    def ranks_per_node(self) -> int:
        """As many on each node, in a row."""
        return len(self.nodes) // len(set(self.nodes))

    @property
    def local_rank(self) -> int:
        """The first one of each node does what is to be done once there."""
        return self.rank % self.ranks_per_node

    @property
    def partner(self) -> int:
        """The rank of the next node that keeps what this one has; on the only node the rank itself."""
        return (self.rank + self.ranks_per_node) % len(self.nodes)

    @property
    def source(self) -> int:
        """The rank whose partner this one is."""
        return (self.rank - self.ranks_per_node) % len(self.nodes)

    def copy_of(self, step: int) -> Path:
        """Where this node's part of a copy lies once it is whole."""
        return self.folder / checkpoint_folder("", step).name


def find_place(config: Config) -> Place:
    """All ranks call.

    Raises:
        ValueError: they cannot be told apart by nodes.
    """
    run, had_copies = Path(config.run.folder).resolve(), False
    identity = ""
    if is_main():
        had_copies = (run / ID_FILE).exists()
        if not had_copies:
            run.mkdir(parents=True, exist_ok=True)
            write_whole(run / ID_FILE, secrets.token_hex(8).encode())
        identity = hashlib.sha256(f"{run} {(run / ID_FILE).read_text()}".encode()).hexdigest()[:16]
    ranks = gather_objects((node_name(), os.environ.get("LOCAL_RANK", "0"), identity, had_copies))
    nodes = tuple(rank[0] for rank in ranks)
    check_nodes(nodes, num_nodes=sum(rank[1] == "0" for rank in ranks))
    folder = Path(config.checkpoint.memory_folder) / f"oneflow-{ranks[0][2]}-{node_name()}"
    return Place(rank=dist.get_rank(), nodes=nodes, folder=folder, had_copies=ranks[0][3])


def check_nodes(nodes: tuple[str, ...], num_nodes: int) -> None:
    """Raise ValueError unless each node has a name of its own, and as many ranks as the others, in a row."""
    names = list(dict.fromkeys(nodes))
    in_a_row = tuple(name for name in names for _ in range(len(nodes) // len(names)))
    if len(names) != num_nodes or nodes != in_a_row:
        raise ValueError(
            f"checkpoint.memory_every_steps: needs nodes with names of their own and as many ranks on each, but "
            f"{num_nodes} nodes with {len(nodes)} ranks are called {', '.join(names)}; set ONEFLOW_NODE on each"
        )


def room_in(folder: Path) -> int:
    """Bytes that can be written there: a folder in memory may be allowed more than the machine has left."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return min(free_bytes(folder), int(lines["MemAvailable"].split()[0]) << 10)


def bytes_in(folder: Path) -> int:
    """What lies there."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def lacking_room(place: Place, folder: str, needed: list[int], room: list[int], copies: int) -> str:
    """Which node has no room for so many copies, and how much it wants; empty if all have.

    Args:
        needed: bytes of one copy that each rank writes.
        room: bytes that each rank finds on its node.
    """
    per_node, total = place.ranks_per_node, len(place.nodes)
    sums = [sum(needed[first : first + per_node]) for first in range(0, total, per_node)]
    for number, own in enumerate(sums):
        kept = own + (sums[number - 1] if len(sums) > 1 else 0)  # the one before sends its own
        wanted, there = int(copies * kept * 1.02) + MIB, room[number * per_node]
        if there < wanted:
            take = "two copies of the state take" if copies > 1 else "a copy of the state takes"
            left = f"{folder} of {place.nodes[number * per_node]} has {there / MIB:.0f} MiB left"
            return f"{left}, and {take} {wanted / MIB:.0f}"
    return ""
