from __future__ import annotations

import time
from collections import Counter

import pytest
import torch
import torch.distributed as dist

from launch import speeds
from launch.speeds import compute_rate, ring_rates, rounds_of_pairs, within_rate
from tests.launching import Launcher

CPU = torch.device("cpu")


@pytest.mark.parametrize("num_nodes", [1, 2, 3, 4, 5, 8, 33])
def test_every_node_has_two_neighbours_and_one_link_at_a_time_in_three_rounds_at_most(num_nodes: int) -> None:
    rounds = rounds_of_pairs(num_nodes)
    assert len(rounds) <= 3
    for pairs in rounds:
        assert max(Counter(node for pair in pairs for node in pair).values()) == 1
    links = [frozenset(pair) for pairs in rounds for pair in pairs]
    assert len(set(links)) == len(links)
    neighbours = Counter(node for link in links for node in link)
    assert neighbours == dict.fromkeys(range(num_nodes if num_nodes > 1 else 0), 1 if num_nodes == 2 else 2)


def measure_links() -> tuple[list[float], int, float]:
    """Of a ring of three nodes of one rank: of links that have time, of links that have none, and within a node."""
    sent = []
    send, rates = dist.send, ring_rates([[0], [1], [2]], CPU)
    dist.send = lambda *arguments, **options: sent.append(send(*arguments, **options))  # type: ignore[assignment]
    speeds.LINK_SECONDS = -1e9
    ring_rates([[0], [1], [2]], CPU)
    return rates, len(sent), within_rate([0, 1, 2], CPU)


def test_links_are_measured_by_both_sides_and_those_that_are_too_slow_end_early(launcher: Launcher) -> None:
    (first, second, third), sent, within = zip(*launcher.call(3, measure_links), strict=True)
    both_sides = [(first[0], second[0]), (second[1], third[0]), (third[1], first[1])]
    assert all(1 / 3 < one / other < 3 for one, other in both_sides)
    assert sent == (4, 4, 4)  # for each of two links one to connect, and one in which its time is over
    assert min(within) > 0.0


def test_ranks_of_a_node_measure_links_with_their_likes(launcher: Launcher) -> None:
    assert [len(rates) for rates in launcher.call(4, ring_rates_of_two_nodes)] == [1, 1, 1, 1]


def ring_rates_of_two_nodes() -> list[float]:
    return ring_rates([[0, 1], [2, 3]], CPU)


def test_a_product_takes_as_long_as_it_may_and_its_rate_is_that_of_its_flops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speeds, "COMPUTE_SECONDS", 0.05)
    start = time.perf_counter()
    rate = compute_rate(CPU)
    assert time.perf_counter() - start < 2.0
    a = torch.randn(256, 256)
    start = time.perf_counter()
    for _ in range(20):
        torch.mm(a, a)
    assert rate > 20 * 2.0 * 256**3 / (time.perf_counter() - start) / 4.0
