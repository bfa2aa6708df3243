from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from oneflow_dist.config import Config
from oneflow_dist.data.lanes import Lane
from oneflow_dist.data.mixture import load_mixture
from oneflow_dist.data.shards import open_shards
from oneflow_dist.data.streams import capacity_of
from oneflow_dist.data.tokenizer import load_tokenizer
from tests.data.making import BYTES, NUM_LANES, MakeLane, source
from tests.pieces import is_same_pack
from tests.tars import write_sources, write_tar

Unchecked = Callable[[], AbstractContextManager[None]]


@pytest.fixture(autouse=True, scope="module")
def _without_shape_checks(unchecked: Unchecked) -> Iterator[None]:
    """Thousands of samples go through here; what noising and packing return is checked in their own tests."""
    with unchecked():
        yield


@pytest.fixture(scope="module")
def heldout(digits: Path) -> str:
    """359 captioned digits, which four lanes share unequally."""
    return f"{{single: {{shards: '{digits}/single-heldout-*.tar', weight: 1, tasks: {{interleaved: 1}}}}}}"


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_sources(tmp_path_factory.mktemp("sources"))


def draws_of(lane: Lane) -> dict[str, int]:
    return {stream.source.name: stream.draws for stream in lane.streams}


def test_every_sample_comes_once_a_pass_over_all_lanes(make_lane: MakeLane, heldout: str) -> None:
    """Whichever of it is packed: a window of a lane's share is filled once."""
    keys = []
    for index, share in enumerate([90, 90, 90, 89]):
        lane = make_lane(heldout, index, f"data.window_samples={share}")
        keys += [*lane.next_pack().keys, *(waiting.noisy.key for waiting in lane.window)]
        assert draws_of(lane) == {"single": share}
    shards = lane.streams[0].shards
    assert sorted(keys) == sorted(shards.name(i) for i in range(len(shards)))


def test_another_seed_gives_another_order_and_other_noise(make_lane: MakeLane, heldout: str) -> None:
    one, other = make_lane(heldout), make_lane(heldout, 0, "run.seed=1")
    assert one.next_pack().keys != other.next_pack().keys


@pytest.mark.parametrize("weights", [(1, 1), (1, 3), (0.2, 0.7)])
def test_the_realised_mixture_is_that_of_the_weights(
    make_lane: MakeLane, digits: Path, weights: tuple[float, float]
) -> None:
    """At every moment each source is within one draw of its part."""
    sources = ", ".join(
        f"{name}: {{shards: '{digits}/{name}-heldout-*.tar', weight: {weight}, tasks: {{interleaved: 1}}}}"
        for name, weight in zip(("single", "count"), weights, strict=True)
    )
    lane = make_lane(f"{{{sources}}}")
    parts = np.array(weights) / sum(weights)
    for number in range(1, 101):
        lane.draw()
        assert np.abs([*draws_of(lane).values()] - parts * number).max() <= 1.0
    assert Counter(waiting.source for waiting in lane.window) == dict(enumerate(draws_of(lane).values()))


def test_the_realised_mixture_of_three_sources_is_that_of_the_weights_though_a_filter_leaves_out_half(
    make_lane: MakeLane, three: str
) -> None:
    """Over 10,000 draws, within 1 %: what counts is what is used, not what is looked at."""
    lane = make_lane(three, 1, BYTES, "data.cached_samples=1000", "data.max_sample_rows=64")
    parts = np.array([0.3, 0.2, 0.5])
    for number in range(1, 10_001):
        lane.draw()
        assert np.abs(lane.used - parts * number).max() < 2.0
        if number % 100 == 0:
            lane.window.clear()
    assert np.abs(lane.used / 10_000 - parts).max() < 0.001
    *draws, drawn_of_filtered = draws_of(lane).values()
    assert draws == lane.used[:2].tolist()
    assert drawn_of_filtered == pytest.approx(2 * lane.used[2], rel=0.02)


@pytest.mark.parametrize("packing", ["oldest", "balanced"])
def test_a_lane_continues_from_its_state_as_if_unbroken(make_lane: MakeLane, heldout: str, packing: str) -> None:
    lane, again = (make_lane(heldout, 1, f"data.packing={packing}") for _ in range(2))
    for _ in range(3):
        lane.next_pack()
    assert lane.state()["waiting"]
    again.load_state(lane.state())
    for _ in range(3):
        assert is_same_pack(lane.next_pack(), again.next_pack())
    assert again.state() == lane.state()


@pytest.mark.parametrize("packing", ["oldest", "balanced"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_lane_of_three_sources_continues_from_any_state_through_json(
    make_lane: MakeLane, three: str, steps: int, packing: str
) -> None:
    lane, again = (make_lane(three, 2, BYTES, f"data.packing={packing}") for _ in range(2))
    for _ in range(steps):
        lane.next_pack()
    again.load_state(json.loads(json.dumps(lane.state())))
    assert again.state() == lane.state()
    for _ in range(3):
        assert is_same_pack(lane.next_pack(), again.next_pack())


def test_a_state_is_a_few_integers_and_no_data(make_lane: MakeLane, heldout: str) -> None:
    lane = make_lane(heldout)
    lane.next_pack()
    state = lane.state()
    assert set(state) == {"sources", "weights", "draws", "used", "drawn", "waiting"}
    numbers = [
        *state["draws"],
        *state["used"],
        *state["drawn"],
        *(number for pair in state["waiting"] for number in pair),
    ]
    assert all(type(number) is int for number in numbers)
    assert len(state["waiting"]) == len(lane.window) > 0


def test_a_state_does_not_grow_with_the_data_or_the_time(make_lane: MakeLane, tmp_path: Path) -> None:
    sizes = []
    for num_samples in (50, 2_000):
        path = write_tar(tmp_path / f"{num_samples}.tar", {f"{n:05d}.txt": b"abcdefgh" * 3 for n in range(num_samples)})
        lane = make_lane(source(path), 0, BYTES)
        for _ in range(20):
            lane.next_pack()
            sizes.append(len(json.dumps(lane.state())))
    assert max(sizes) < 600


# A mixture that changes on the way.


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """A mixture of texts by name and weight; each source has 400."""
    folder = tmp_path_factory.mktemp("pets")
    for name in ("cats", "dogs", "hens"):
        write_tar(folder / f"{name}.tar", {f"{n:03d}.txt": f"{name} {n}".encode() for n in range(400)})

    def mixture(**weights: float) -> str:
        entries = (
            f"{name}: {{shards: '{folder}/{name}.tar', weight: {weight}, tasks: {{text_only: 1}}}}"
            for name, weight in weights.items()
        )
        return f"{{{', '.join(entries)}}}"

    return mixture


def keys_of(lane: Lane, num_packs: int) -> list[str]:
    return [key for _ in range(num_packs) for key in lane.next_pack().keys]


def resumed(lane: Lane, state: dict[str, object]) -> Lane:
    lane.load_state(json.loads(json.dumps(state)))
    return lane


def test_sources_go_on_by_name_wherever_they_stand_in_the_mixture(
    make_lane: MakeLane, pets: Callable[..., str]
) -> None:
    lane = make_lane(pets(cats=1, dogs=1), 0, BYTES)
    before = keys_of(lane, 5)
    again = resumed(make_lane(pets(dogs=1, cats=1), 0, BYTES), lane.state())
    assert draws_of(again) == draws_of(lane)
    waiting = [waiting.noisy.key for waiting in lane.window]
    assert [waiting.noisy.key for waiting in again.window] == waiting
    later = keys_of(again, 5)
    assert len(set(before + later)) == len(before + later)  # nothing comes twice in a pass
    assert set(keys_of(lane, 3)) & set(later)


def test_a_source_may_come_and_another_go(make_lane: MakeLane, pets: Callable[..., str]) -> None:
    lane = make_lane(pets(cats=1, dogs=1), 0, BYTES)
    before = keys_of(lane, 5)
    again = resumed(make_lane(pets(hens=1, cats=1), 0, BYTES), lane.state())
    assert draws_of(again) == {"hens": 0, "cats": draws_of(lane)["cats"]}
    later = keys_of(again, 5)
    assert {key.partition("/")[0] for key in later} == {"hens", "cats"}
    assert not set(before) & set(later)


def test_new_weights_hold_from_now_on_and_nothing_is_made_up_for(make_lane: MakeLane, pets: Callable[..., str]) -> None:
    lane = make_lane(pets(cats=9, dogs=1), 0, BYTES)
    keys_of(lane, 6)
    again = resumed(make_lane(pets(cats=1, dogs=1), 0, BYTES), lane.state())
    assert again.rows == sum(waiting.size.rows for waiting in again.window) < lane.rows
    start = draws_of(again)
    keys_of(again, 6)
    drawn = {name: draws_of(again)[name] - start[name] for name in start}
    assert abs(drawn["cats"] - drawn["dogs"]) <= 1


def test_balanced_packs_go_on_from_the_state_of_others(make_lane: MakeLane, heldout: str) -> None:
    """That of a version without sums, too: then what waits is counted."""
    lane = make_lane(heldout, 1)
    for _ in range(3):
        lane.next_pack()
    state = lane.state()
    (balanced, without_sums) = (make_lane(heldout, 1, "data.packing=balanced") for _ in range(2))
    balanced.load_state(state)
    assert balanced.state() == state
    del state["drawn"]
    without_sums.load_state(state)
    rows = [waiting.size.rows for waiting in without_sums.window]
    assert without_sums.state()["drawn"] == [sum(rows), sum(n * n for n in rows)]
    for again in (balanced, without_sums):
        assert set(again.next_pack().keys) & {waiting.noisy.key for waiting in lane.window}


def test_the_sums_are_of_all_that_was_drawn(make_lane: MakeLane, heldout: str) -> None:
    """Each sequence of a pack has its squared rows as pairs, and so has what waits."""
    lane = make_lane(heldout, 0, "data.packing=balanced")
    counts = [lane.next_pack().counts for _ in range(4)]
    waiting = [waiting.size.rows for waiting in lane.window]
    rows, pairs = lane.state()["drawn"]
    assert rows == sum(c.rows for c in counts) + sum(waiting)
    assert pairs == sum(c.attention_pairs for c in counts) + sum(n * n for n in waiting)


@pytest.mark.parametrize("packing", ["oldest", "balanced"])
def test_packs_leave_less_than_three_percent_padding(config: Config, packing: Literal["oldest", "balanced"]) -> None:
    """With the capacities and the window of the quickstart."""
    config = replace(config, data=replace(config.data, packing=packing))
    sources = load_mixture(config.data.mixture)
    shards = [open_shards(source.name, source.shards) for source in sources]
    lane = Lane(0, config, sources, shards, load_tokenizer(config.data.tokenizer, config.modality))
    counts = [lane.next_pack().counts for _ in range(3)]
    assert sum(c.rows for c in counts) / sum(c.padded_rows for c in counts) > 0.97
    assert capacity_of(config).rows == counts[0].padded_rows


@pytest.mark.parametrize("packing", ["oldest", "balanced"])
def test_no_sample_waits_for_long(make_lane: MakeLane, heldout: str, packing: str) -> None:
    """The oldest go first: what waits has been drawn within the last two windows."""
    lane = make_lane(heldout, 0, f"data.packing={packing}")
    for _ in range(10):
        lane.next_pack()
        draws = lane.streams[0].draws
        assert draws - min((waiting.draw for waiting in lane.window), default=draws) <= 2 * lane.window_samples


def test_caching_changes_nothing(make_lane: MakeLane, counting: str) -> None:
    with_cache = make_lane(counting, 0, "data.cached_samples=1000")
    without = make_lane(counting, 0, "data.cached_samples=0")
    for _ in range(3):
        assert is_same_pack(with_cache.next_pack(), without.next_pack())


def test_a_few_good_samples_among_many_are_found_by_every_lane(make_lane: MakeLane, tmp_path: Path) -> None:
    """A lane of ten samples has another ten in each pass; that one ten holds no good sample is no mistake."""
    members = {}
    for number in range(40):
        members |= {f"{number}.txt": b"text", f"{number}.json": json.dumps({"score": number}).encode()}
    path = write_tar(tmp_path / "x.tar", members)
    for index in range(NUM_LANES):
        lane = make_lane(source(path, "tasks: {text_only: 1}, filters: {score: {max: 4}}"), index, BYTES)
        assert {key.rpartition("/")[2] for _ in range(3) for key in lane.next_pack().keys} <= set("01234")
