from __future__ import annotations

import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest

from oneflow_dist.config import Config
from oneflow_dist.copies.place import MIB, Place, check_nodes, find_place, lacking_room, room_in
from tests.messages import names, naming


def places(*nodes: str) -> list[Place]:
    """Of all ranks."""
    return [Place(rank=rank, nodes=nodes, folder=Path("/nowhere"), had_copies=False) for rank in range(len(nodes))]


@pytest.mark.parametrize("nodes", [("a", "b"), ("a", "a", "b", "b"), ("a", "a", "b", "b", "c", "c")])
def test_each_rank_has_its_like_on_the_next_node_as_partner(nodes: tuple[str, ...]) -> None:
    all_places = places(*nodes)
    assert sorted(place.partner for place in all_places) == list(range(len(nodes)))
    following = dict(zip(dict.fromkeys(nodes), [*[*dict.fromkeys(nodes)][1:], nodes[0]], strict=True))
    for place in all_places:
        assert nodes[place.partner] == following[nodes[place.rank]]
        assert all_places[place.partner].local_rank == place.local_rank
        assert all_places[place.partner].source == place.rank


def test_on_the_only_node_nobody_has_a_partner() -> None:
    assert [place.partner for place in places("a", "a", "a")] == [0, 1, 2]


@pytest.mark.parametrize(
    ("nodes", "num_nodes"), [(("a", "a"), 2), (("a", "a", "b"), 2), (("a", "b", "a", "b"), 2), (("a", "b", "b"), 2)]
)
def test_nodes_that_cannot_be_told_apart_are_refused(nodes: tuple[str, ...], num_nodes: int) -> None:
    with pytest.raises(ValueError, match=naming("checkpoint.memory_every_steps", num_nodes, "ONEFLOW_NODE")):
        check_nodes(nodes, num_nodes)


def test_nodes_with_names_of_their_own_are_not_refused() -> None:
    check_nodes(("a", "a", "b", "b"), 2)
    check_nodes(("a",), 1)


@pytest.mark.usefixtures("group_of_one")
def test_a_run_has_its_place_whenever_it_starts_and_no_other_run_has_it(config: Config, tmp_path: Path) -> None:
    run = replace(config, run=replace(config.run, folder=str(tmp_path / "run")))
    first, again = find_place(run), find_place(run)
    assert again.folder == first.folder
    assert (first.had_copies, again.had_copies) == (False, True)
    shutil.copytree(tmp_path / "run", tmp_path / "fork")
    fork = replace(config, run=replace(config.run, folder=str(tmp_path / "fork")))
    assert find_place(fork).folder != first.folder
    shutil.rmtree(tmp_path / "run")  # started anew under the name of a run that was deleted
    assert find_place(run).folder != first.folder


def test_room_is_what_both_the_folder_and_the_machine_have_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", ["free"])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(5))
    assert room_in(tmp_path / "not/made/yet") == 5
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1 << 60))
    assert 0 < room_in(tmp_path) < 1 << 50


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize(
    ("nodes", "needed", "kept"),
    [
        (("a", "a"), [10, 20], {"a": 30}),
        (("a", "a", "b", "b"), [10, 20, 30, 40], {"a": 100, "b": 100}),
        (("a", "b", "c"), [10, 20, 70], {"a": 80, "b": 30, "c": 90}),
    ],
)
def test_a_node_needs_room_for_its_own_files_and_those_of_the_node_before(
    nodes: tuple[str, ...], needed: list[int], kept: dict[str, int], copies: int
) -> None:
    place, sizes = places(*nodes)[0], [size * MIB for size in needed]
    enough = {node: int(1.02 * copies * size * MIB) + MIB for node, size in kept.items()}
    assert lacking_room(place, "/shm", sizes, [enough[node] for node in nodes], copies) == ""
    for short in kept:
        room = [enough[node] - (node == short) for node in nodes]
        wanted = f"{1.02 * copies * kept[short] + 1:.0f}"
        assert names(lacking_room(place, "/shm", sizes, room, copies), "/shm", short, "MiB", wanted)
