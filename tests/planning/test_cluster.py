from __future__ import annotations

import math

import pytest

from oneflow_dist.planning.cluster import Cluster, group_span, link_of, link_seconds
from oneflow_dist.planning.events import GATHER, REDUCE, SCATTER, SWAP, Collective
from oneflow_dist.planning.gpus import GPUS

H100 = Cluster(gpu=GPUS["h100-80gb"])
MESH = (2, 4, 2, 4)  # replicate, shard, context, tensor


def test_groups_stretch_over_what_lies_between_their_ranks() -> None:
    names = ("tensor", "context", "shard", "shard_tensor", "replicate", "all")
    assert {name: group_span(name, MESH) for name in names} == {
        "tensor": (4, 4),
        "context": (2, 8),
        "shard": (8, 32),  # and context
        "shard_tensor": (32, 32),
        "replicate": (2, 64),
        "all": (64, 64),
    }


@pytest.mark.parametrize(
    ("group", "nodes", "rate"),
    [
        ("tensor", 1, 450e9),
        ("context", 1, 450e9),
        ("shard", 4, 2 * 50e9),  # two of its ranks in a node, each with a card
        ("replicate", 2, 50e9),
        ("all", 8, 8 * 50e9),
    ],
)
def test_between_nodes_a_group_has_the_cards_of_all_its_ranks_in_a_node(group: str, nodes: int, rate: float) -> None:
    link = link_of(group, MESH, H100)
    assert (link.nodes, link.bytes_per_second) == (nodes, rate)


@pytest.mark.parametrize(
    ("collective", "seconds"),
    [
        (Collective(SCATTER, "tensor", 4 * 10**9), 4e9 * 3 / 4 / (0.8 * 450e9) + 8.4e-6 + 3 * 3.4e-6),
        (Collective(GATHER, "shard", 8 * 10**9), 8e9 * 7 / 8 / (0.8 * 100e9) + 8.4e-6 + 4 * 3.4e-6 + 3 * 14e-6),
        # There and back: up and down a tree.
        (Collective(REDUCE, "replicate", 10**9), 2 * 1e9 / 2 / (0.8 * 50e9) + 8.4e-6 + 2 * 14e-6),
        (Collective(SWAP, "context", 10**9), 1e9 / 2 / (0.8 * 450e9) + 8.4e-6 + 3.4e-6),
    ],
)
def test_a_collective_takes_its_bytes_over_the_slowest_link_and_its_hops(
    collective: Collective, seconds: float
) -> None:
    assert link_seconds(collective, MESH, H100) == pytest.approx(seconds)


def test_what_all_send_to_all_leaves_a_node_through_the_card_of_each() -> None:
    mesh = (1, 1, 16, 1)  # two nodes of 8: half of what a rank sends leaves its node
    swap, gather = (link_seconds(Collective(kind, "context", 16 * 10**9), mesh, H100) for kind in (SWAP, GATHER))
    assert swap == pytest.approx(15e9 / (0.8 * 100e9), rel=0.01)
    assert gather == pytest.approx(15e9 / (0.8 * 400e9), rel=0.01)


def test_a_group_of_one_sends_nothing() -> None:
    assert link_seconds(Collective(REDUCE, "all", 10**9), (1, 1, 1, 1), H100) == H100.start_seconds


def test_sums_over_more_nodes_take_more_hops_by_the_logarithm() -> None:
    few, many = (link_seconds(Collective(REDUCE, "all", 4), (1, size, 1, 1), H100) for size in (64, 512))
    assert many - few == pytest.approx(2 * (math.log2(64) - math.log2(8)) * 14e-6)
