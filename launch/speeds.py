"""How fast a rank computes, and how fast the links are that its messages take."""

# Shapes: n the side of a square matrix.

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

from oneflow_dist.runtime import GLOO

COMPUTE_SECONDS = 0.5
LINK_SECONDS = 0.5  # of one link, however slow or fast: a busy core is away for many milliseconds at a time
LINK_BYTES = {"cuda": 16 * 2**20, "cpu": 256 * 2**10}  # of a message, where that takes no longer than all should
FIRST_BYTES = 64 * 2**10
REPEAT, GROW, LAST = 0, 1, 2
WITHIN_BYTES = 64 * 2**20


def compute_rate(device: torch.device) -> float:
    """FLOPs per second of matrix products: bf16 on a GPU, float32 by one thread on a CPU."""
    on_gpu = device.type == "cuda"
    n, repeats, dtype = (8192, 4, torch.bfloat16) if on_gpu else (256, 1, torch.float32)
    if not on_gpu:
        torch.set_num_threads(1)
    a, b = torch.randn(2, n, n, device=device).to(dtype)  # of zeros a GPU makes light work
    seconds: list[float] = []
    deadline = time.perf_counter() + COMPUTE_SECONDS
    while len(seconds) < 3 or time.perf_counter() < deadline:
        start = time.perf_counter()
        for _ in range(repeats):
            torch.mm(a, b)
        if on_gpu:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2.0 * n**3 * repeats / _usual(seconds, device)


def rounds_of_pairs(num_nodes: int) -> list[list[tuple[int, int]]]:
    """The links of a ring of nodes in rounds; in a round a node has one link at most. Two nodes have one."""
    ring = [(node, (node + 1) % num_nodes) for node in range(num_nodes)]
    if num_nodes < 3:
        return [ring[:1]] if num_nodes == 2 else []
    even = num_nodes - num_nodes % 2
    return [ring[0:even:2], ring[1:even:2], *([ring[even:]] if num_nodes % 2 else [])]


def ring_rates(nodes: Sequence[Sequence[int]], device: torch.device) -> list[float]:
    """Bytes per second between this rank and its like on each neighbour of its node, all pairs of a round at once.

    Args:
        nodes: the ranks of each node, as many on each.
    """
    rank = dist.get_rank()
    (at,) = [(node, ranks.index(rank)) for node, ranks in enumerate(nodes) if rank in ranks]
    rates = []
    for pairs in rounds_of_pairs(len(nodes)):
        pair = [nodes[node][at[1]] for pair in pairs if at[0] in pair for node in sorted(pair)]
        # Who has nobody in this round makes a group, too: its name has the number of those that a rank has made.
        group = _group_of(pair or [rank], device)
        if pair:
            rates.append(link_rate(pair[1 - pair.index(rank)], group, device))
    return rates


def link_rate(peer: int, group: dist.ProcessGroup | None, device: torch.device) -> float:
    """Bytes per second between this rank and `peer`, which calls this too.

    The lower rank leads, and says in the first byte of a message whether it is the last, or the next is larger; so both
    stop after LINK_SECONDS, however slow the link is.
    """
    leads, size, deadline = dist.get_rank() < peer, FIRST_BYTES, 0.0
    message = torch.zeros(LINK_BYTES[device.type], dtype=torch.uint8, device=device)
    seconds: list[float] = []  # of the messages of this size; the very first is spent on connecting and waiting
    what = REPEAT
    while what != LAST:
        start = time.perf_counter()
        if leads and deadline:
            can_grow = size < len(message) and seconds != [] and seconds[-1] < LINK_SECONDS / 8
            message[0] = LAST if start > deadline else GROW if can_grow else REPEAT
        for send in (leads, not leads):
            (dist.send if send else dist.recv)(message[:size], peer, group=group)
        what = int(message[0])  # waits for the device
        if deadline:
            seconds.append(time.perf_counter() - start)
        deadline = deadline or time.perf_counter() + LINK_SECONDS
        if what == GROW:
            size, seconds = min(4 * size, len(message)), []
    return 2.0 * size / _usual(seconds, device)


def within_rate(ranks: Sequence[int], device: torch.device) -> float:
    """Bytes per second that each of the ranks of a node sends and gets in an all-reduce among them."""
    group = _group_of(ranks, device)
    values = torch.zeros(WITHIN_BYTES // 4, device=device)
    seconds: list[float] = []
    for _ in range(6):
        start = time.perf_counter()
        dist.all_reduce(values, group=group)
        values[0].item()  # waits for the device
        seconds.append(time.perf_counter() - start)
    return 2.0 * (len(ranks) - 1) / len(ranks) * WITHIN_BYTES / _usual(seconds[1:], device)


def _usual(seconds: Sequence[float], device: torch.device) -> float:
    """A GPU is ours alone. A core may be taken from us at any moment, and what it can do is seen in between."""
    return statistics.median(seconds) if device.type == "cuda" else min(seconds)


def _group_of(ranks: Sequence[int], device: torch.device) -> dist.ProcessGroup | None:
    """A group that only its members know of, so that many are made at once."""
    backend = "nccl" if device.type == "cuda" else GLOO
    return dist.new_group(list(ranks), backend=backend, use_local_synchronization=True)
