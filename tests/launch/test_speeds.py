from __future__ import annotations

import itertools
import time
from collections import Counter
from typing import Any

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


SLOW_SECONDS = 0.02  # of a message over the link between nodes 1 and 2: nothing can be faster, however idle


def measure_links() -> tuple[list[float], int, float]:
    """Of a ring of three nodes of one rank, whose links have no time: their rates, messages sent, and within a node."""
    sent = []
    send = dist.send

    def slow_send(message: torch.Tensor, peer: int, **options: Any) -> None:
        time.sleep(SLOW_SECONDS if {dist.get_rank(), peer} == {1, 2} else 0.0)
        sent.append(send(message, peer, **options))

    dist.send = slow_send  # type: ignore[assignment]
    speeds.LINK_SECONDS = -1e9
    return ring_rates([[0], [1], [2]], CPU), len(sent), within_rate([0, 1, 2], CPU)


def test_links_are_measured_by_both_sides_and_those_that_are_too_slow_end_early(launcher: Launcher) -> None:
    (first, second, third), sent, within = zip(*launcher.call(3, measure_links), strict=True)
    assert [len(rates) for rates in (first, second, third)] == [2, 2, 2]
    assert min(*first, *second, *third) > 0.0
    slowest = 2.0 * speeds.LINK_BYTES["cpu"] / SLOW_SECONDS  # each side waits for its own message at least
    assert max(second[1], third[0]) <= slowest
    assert sent == (4, 4, 4)  # for each of two links one to connect, and one in which its time is over
    assert min(within) > 0.0


def test_ranks_of_a_node_measure_links_with_their_likes(launcher: Launcher) -> None:
    assert [len(rates) for rates in launcher.call(4, ring_rates_of_two_nodes)] == [1, 1, 1, 1]


def ring_rates_of_two_nodes() -> list[float]:
    return ring_rates([[0, 1], [2, 3]], CPU)


def test_the_rate_of_a_product_is_that_of_its_flops_in_the_time_that_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = itertools.count(0.0, 0.125)  # a clock on which a product takes an eighth of a second
    monkeypatch.setattr(time, "perf_counter", lambda: next(readings))
    assert compute_rate(CPU) == 2.0 * 256**3 / 0.125
    assert next(readings) < 10 * speeds.COMPUTE_SECONDS
