from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from launch.faults import (
    CLOCK_SECONDS,
    Blame,
    Fault,
    Report,
    describe_faults,
    describe_fit,
    judge_links,
    judge_nodes,
    show,
    split_blame,
)
from tests.messages import names

NOON = 1_800_000_000.0
FACTS = {"code": "abc", "torch": "2.13", "device": "cpu"}


def report(node_rank: int = 0, local_rank: int = 0, **values: Any) -> Report:
    measured = {"facts": FACTS, "clock": NOON, "compute": 1e11, "between": [1e9, 1e9]}
    return Report(f"node{node_rank}", node_rank, local_rank, **{"device": "cpu", **measured, **values})


def fault(node: int, blame: Blame, kind: str = "data") -> Fault:
    return Fault(f"node{node}", blame, kind, f"{kind} is bad; mend it")


def blamed(faults: list[Fault]) -> set[str]:
    return {fault.node for fault in faults}


def test_nodes_that_are_alike_have_no_faults() -> None:
    for num_nodes in (1, 2, 3, 8):
        reports = [report(node, local) for node in range(num_nodes) for local in range(2)]
        assert judge_nodes(reports) == judge_links(reports) == []


def test_what_a_rank_has_noted_is_a_fault_of_its_node() -> None:
    reports = [report(node) for node in range(3)]
    with reports[2].noting("data", "either"):
        raise ValueError("shards:\n  are gone")
    assert judge_nodes(reports) == [Fault("node2", "either", "data", "shards: are gone")]
    with pytest.raises(KeyError), reports[2].noting("data", "either"):
        raise KeyError("our own mistake")


def test_few_are_to_blame_for_what_most_do_not_have_and_the_user_for_the_rest() -> None:
    assert split_blame([fault(2, "either")], 4) == ([fault(2, "either")], [])
    for num_nodes, bad in ((1, [0]), (2, [1]), (4, [0, 2]), (3, [0, 1, 2])):
        faults = [fault(node, "either") for node in bad]
        assert split_blame(faults, num_nodes) == ([], faults)
    same_node_twice = [fault(1, "either"), fault(1, "either")]
    assert split_blame(same_node_twice, 4) == (same_node_twice, [])
    different = [
        fault(0, "either", "data"),
        fault(1, "either", "clock"),
        fault(2, "node", "ECC"),
        fault(3, "user", "room"),
    ]
    assert split_blame(different, 4) == (different[:3], different[3:])
    assert split_blame([fault(0, "node")], 1) == ([fault(0, "node")], [])
    of_a_broken_node = [fault(1, "node", "ECC"), fault(1, "either", "number of GPUs")]
    assert split_blame(of_a_broken_node, 2) == (of_a_broken_node, [])


@pytest.mark.parametrize("kind", FACTS)
def test_the_node_that_differs_from_most_is_named_with_both_values(kind: str) -> None:
    reports = [report(node) for node in range(4)]
    reports[0] = report(0, facts={**FACTS, kind: "other"})
    (found,) = judge_nodes(reports)
    assert (found.node, found.blame, found.kind) == ("node0", "either", kind)
    assert names(found.text, "other", FACTS[kind], "node1")


def test_what_a_node_does_not_know_is_not_compared() -> None:
    with_driver = {**FACTS, "driver": "570"}
    assert judge_nodes([report(0, facts=with_driver), report(1), report(2, facts=with_driver)]) == []


def test_a_clock_that_is_off_is_named_with_its_seconds() -> None:
    for ahead in (86_400.0, -86_400.0):
        reports = [report(node, clock=NOON + 0.01 * node) for node in range(4)]
        reports[1] = report(1, clock=NOON + ahead)
        (found,) = judge_nodes(reports)
        assert found.node == "node1"
        assert names(found.text, "86400 s")
    assert judge_nodes([report(0), report(1, clock=NOON + CLOCK_SECONDS - 1.0)]) == []
    assert len(judge_nodes([report(0), report(1, clock=NOON + CLOCK_SECONDS + 1.0)])) == 1


def test_a_rank_that_computes_far_below_the_median_of_its_kind_is_named() -> None:
    gpus = [report(node, local, device="cuda", compute=4e14) for node in range(2) for local in range(4)]
    gpus[6] = dataclasses.replace(gpus[6], compute=2.7e14)
    (found,) = judge_nodes(gpus)
    assert (found.node, found.blame) == ("node1", "node")
    assert names(found.text, "cuda 2", "270 TFLOP/s", "400 TFLOP/s")
    gpus[6] = dataclasses.replace(gpus[6], compute=2.9e14)
    assert judge_nodes(gpus) == []
    assert judge_nodes([report(0), report(1, compute=0.4e11), report(2)]) == []  # processors are shared with others
    assert blamed(judge_nodes([report(0), report(1, compute=0.2e11), report(2)])) == {"node1"}
    assert judge_nodes([report(0, compute=0.0), report(1)]) == []  # the product failed, which is a fault of its own


def rings(*links: list[float]) -> list[Report]:
    return [report(node, between=between) for node, between in enumerate(links)]


def test_a_slow_node_is_the_one_whose_better_link_is_slow_and_its_neighbours_are_not() -> None:
    assert blamed(judge_links(rings([1e9, 1e8], [1e8, 1e8], [1e8, 1e9], [1e9, 1e9]))) == {"node1"}
    assert blamed(judge_links(rings([1e8, 1e9], [1e8, 1e8], [1e8, 1e9]))) == {"node1"}
    assert judge_links(rings([1e9, 0.6e9], [0.6e9, 0.6e9], [0.6e9, 1e9])) == []
    assert judge_links(rings([1e8], [1e9])) == []  # of two nobody knows which


@pytest.mark.parametrize("num_nodes", [2, 3, 8])
def test_links_that_are_all_too_slow_for_any_training_are_named_with_the_slowest(num_nodes: int) -> None:
    links = [[1.2e5 + node, 1.1e5] for node in range(num_nodes)]
    found = judge_links(rings(*links))
    assert split_blame(found, num_nodes) == ([], found)  # no other nodes would help
    (line,) = describe_faults(found)
    assert names(line, "node0", "120 kB/s", "1 MB/s", "GLOO_SOCKET_IFNAME")
    on_gpus = [dataclasses.replace(own, device="cuda", between=[4e7]) for own in rings(*links)]
    assert names(describe_faults(judge_links(on_gpus))[0], "40 MB/s", "50 MB/s")


def test_one_slow_network_card_of_a_node_is_enough() -> None:
    reports = [report(node, local) for node in range(4) for local in range(2)]
    reports[5] = report(2, 1, between=[1e8, 1e8])
    (found,) = judge_links(reports)
    assert found.node == "node2"
    assert names(found.text, "cpu 1", "100 MB/s", "1 GB/s")


def test_slow_links_within_a_node_are_named() -> None:
    reports = [report(node, local, within=4e11 if node != 1 else 5e10) for node in range(3) for local in range(2)]
    (found,) = judge_links(reports)
    assert found.node == "node1"
    assert names(found.text, "50 GB/s", "400 GB/s")


def test_nodes_with_the_same_fault_share_its_line() -> None:
    faults = [fault(0, "either"), fault(1, "either", "clock"), fault(2, "either"), fault(2, "either")]
    assert describe_faults(faults) == ["node0, node2: data is bad; mend it", "node1: clock is bad; mend it"]
    (line,) = describe_faults([fault(node, "either") for node in range(64)])
    assert names(line, "node0", "node3", 60, "data")
    assert "node4" not in line


def test_what_was_measured_is_shown_by_the_slowest() -> None:
    reports = [report(node, local, room="the room") for node in range(2) for local in range(2)]
    reports[3] = report(1, 1, compute=9e10, between=[5e8, 2e8])
    line = describe_fit(reports)
    assert names(line, "2", "2 cpu", "90 GFLOP/s", "500 MB/s", "the room")
    assert line.count("B/s") == 1  # within nodes nothing was measured


@pytest.mark.parametrize(
    ("rate", "expected"), [(4.21e11, "421 GB/s"), (1.5e12, "1.5 TB/s"), (2e6, "2 MB/s"), (125.0, "0.125 kB/s")]
)
def test_rates_have_three_digits(rate: float, expected: str) -> None:
    assert show(rate, "B/s") == expected
