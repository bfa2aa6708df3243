from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneflow_dist.data.order import BLOCK, Permutation, ScatteredOrder, ShardwiseOrder, make_order
from oneflow_dist.data.shards import ShardSet
from tests.messages import Message, names

Unchecked = Callable[[], AbstractContextManager[None]]


class FakeShards(ShardSet):
    """Shards of given sizes, and what is fetched of them."""

    def __init__(self, sizes: list[int], is_remote: bool = False, source: str = "pets"):
        self.source = source
        self.paths = [f"{number}.tar" for number in range(len(sizes))]
        self.first_sample = list(itertools.accumulate(sizes, initial=0))
        self.is_remote = is_remote
        self.asked: list[int] = []

    def prefetch(self, shard: int) -> None:
        self.asked.append(shard)


def orders_of(size: int, num_keys: int, unchecked: Unchecked) -> list[np.ndarray]:
    """The whole permutations of many keys."""
    with unchecked():
        return [permutation(size, key)(np.arange(size)) for key in range(num_keys)]


def permutation(size: int, key: int) -> Permutation:
    return Permutation(size, np.random.default_rng(key))


def is_fair(counts: list[int], expected: float) -> bool:
    """Whether counts of equally likely outcomes pass a chi-square test: within five sigma of what chance gives."""
    chi_square = sum((count - expected) ** 2 / expected for count in counts)
    freedom = len(counts) - 1
    return chi_square < freedom + 5 * math.sqrt(2 * freedom) + 10


# The shuffle.


@pytest.mark.parametrize("key", range(3))
def test_a_permutation_takes_every_number_once(key: int) -> None:
    for size in range(1, 201):
        assert sorted(permutation(size, key)(np.arange(size)).tolist()) == list(range(size))


@given(st.integers(1, 3_000), st.integers(0, 2**32))
def test_a_permutation_of_any_size_takes_every_number_once(size: int, key: int) -> None:
    assert (np.bincount(permutation(size, key)(np.arange(size)), minlength=size) == 1).all()


@pytest.mark.parametrize("size", [10**9, 2**40, 3 * 10**15, 2**52 - 1])
def test_numbers_of_a_large_permutation_lie_inside_and_differ(size: int) -> None:
    shuffle = permutation(size, 0)
    places = np.unique(np.append(np.random.default_rng(1).integers(size, size=50_000), [0, 1, size - 2, size - 1]))
    found = shuffle(places)
    assert found.min() >= 0
    assert found.max() < size
    assert len(np.unique(found)) == len(places)


@given(st.lists(st.integers(0, 999), min_size=1, max_size=20))
def test_a_number_depends_on_its_place_alone(places: list[int]) -> None:
    """And not on which others are asked for with it."""
    shuffle = permutation(1000, 5)
    together = shuffle(np.array(places))
    assert together.tolist() == [int(shuffle(np.array([place]))[0]) for place in places]


def test_what_is_asked_for_is_left_as_it_is() -> None:
    places = np.arange(100)
    permutation(100, 0)(places)
    assert np.array_equal(places, np.arange(100))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_order_of_a_few_is_equally_likely(size: int, unchecked: Unchecked) -> None:
    num_keys = 2_000
    orders = Counter(tuple(order.tolist()) for order in orders_of(size, num_keys, unchecked))
    assert len(orders) == math.factorial(size)
    assert is_fair([*orders.values()], num_keys / math.factorial(size))


@pytest.mark.parametrize("size", [5, 9, 17, 30])
def test_every_place_gets_every_number_equally_often(size: int, unchecked: Unchecked) -> None:
    num_keys = 1_500
    counts = np.zeros((size, size), dtype=int)
    for order in orders_of(size, num_keys, unchecked):
        counts[np.arange(size), order] += 1
    for row in counts:
        assert is_fair(row.tolist(), num_keys / size)


@pytest.mark.parametrize("size", [12, 25])
def test_pairs_of_neighbours_are_equally_likely(size: int, unchecked: Unchecked) -> None:
    num_keys = 2_000
    counts: Counter[tuple[int, int]] = Counter()
    for order in orders_of(size, num_keys, unchecked):
        counts.update(itertools.pairwise(order.tolist()))
    pairs = size * (size - 1)
    assert len(counts) == pairs
    assert is_fair([*counts.values()], num_keys * (size - 1) / pairs)


@pytest.mark.parametrize("size", [1_000, 65_536, 100_000])
@pytest.mark.parametrize("lag", [1, 2, 316])
def test_neighbours_are_not_alike(size: int, lag: int) -> None:
    """The correlation of what lies `lag` apart, or of place and number, is that of chance, 1 / sqrt(size)."""
    found = permutation(size, 7)(np.arange(size)).astype(float)
    assert abs(np.corrcoef(found[:-lag], found[lag:])[0, 1]) < 4.5 / math.sqrt(size)
    assert abs(np.corrcoef(np.arange(size), found)[0, 1]) < 4.5 / math.sqrt(size)


def test_other_keys_give_other_orders() -> None:
    one, other = (permutation(10_000, key)(np.arange(10_000)) for key in (0, 1))
    assert (one == other).sum() < 10


# Orders of samples.


def draws_of(order: ScatteredOrder | ShardwiseOrder, num_draws: int) -> list[tuple[int, int]]:
    return [order.sample_at(draw) for draw in range(num_draws)]


kinds = pytest.mark.parametrize("kind", [ScatteredOrder, ShardwiseOrder])
SIZES = [7, 1, 30, 0, 12, 9, 22]


@kinds
@pytest.mark.parametrize("num_lanes", [1, 2, 5])
def test_every_sample_comes_once_a_pass_over_all_lanes(kind: type[ScatteredOrder], num_lanes: int) -> None:
    shards = FakeShards(SIZES)
    lanes = [kind(shards, 3, lane, num_lanes) for lane in range(num_lanes)]
    seen: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for order in lanes:
        for pass_index, sample in draws_of(order, 3 * order.samples_per_pass):
            seen[pass_index].append(sample)
    for samples in seen.values():
        assert sorted(samples) == list(range(len(shards)))
    assert seen[0] != seen[1] != seen[2]


@kinds
def test_passes_follow_each_other(kind: type[ScatteredOrder]) -> None:
    order = kind(FakeShards(SIZES), 3, 1, 3)
    own = order.samples_per_pass
    assert [pass_index for pass_index, _ in draws_of(order, 3 * own)] == [0] * own + [1] * own + [2] * own


@kinds
def test_a_draw_is_the_same_whoever_asks_and_in_which_order(kind: type[ScatteredOrder]) -> None:
    shards = FakeShards([700, 900, 800])
    expected = draws_of(kind(shards, 3, 1, 2), 3_000)
    rng = np.random.default_rng(0)
    jumping = kind(shards, 3, 1, 2)
    for draw in rng.integers(3_000, size=200).tolist():
        assert jumping.sample_at(draw) == expected[draw]
        assert kind(shards, 3, 1, 2).sample_at(draw) == expected[draw]


@kinds
def test_another_seed_gives_another_order(kind: type[ScatteredOrder]) -> None:
    shards = FakeShards([40, 30])
    one, other = ([kind(shards, seed, 0, 1).sample_at(draw)[1] for draw in range(70)] for seed in (0, 1))
    assert one != other


@kinds
def test_another_source_has_another_order(kind: type[ScatteredOrder]) -> None:
    one, other = (
        [kind(FakeShards([50, 50], source=name), 0, 0, 1).sample_at(draw)[1] for draw in range(100)]
        for name in ("cats", "dogs")
    )
    assert one != other


def test_blocks_of_draws_join_without_a_seam() -> None:
    """Draws are computed a block at a time; a pass of two and a half blocks has each sample once."""
    size = 5 * BLOCK // 2
    order = ScatteredOrder(FakeShards([size]), 0, 0, 1)
    assert sorted(sample for _, sample in draws_of(order, size)) == list(range(size))


def test_a_thousand_million_samples_take_no_time_and_no_memory() -> None:
    order = ScatteredOrder(FakeShards([10**9]), 0, 17, 64)
    assert order.samples_per_pass == len(range(17, 10**9, 64))
    places = [0, BLOCK, 10**7, order.samples_per_pass - 1, order.samples_per_pass, 10**12]
    found = [order.sample_at(draw) for draw in places]
    assert [pass_index for pass_index, _ in found] == [0, 0, 0, 0, 1, 10**12 // order.samples_per_pass]
    assert len({sample for _, sample in found}) == len(found)
    assert order._block.cache_info().currsize <= 2


# Whole shards, where reading at random costs.


def test_a_lane_reads_its_own_shards_one_after_the_other() -> None:
    shards = FakeShards([20] * 12, is_remote=True)
    starts = np.array(shards.first_sample)
    owned = []
    for lane in range(4):
        order = ShardwiseOrder(shards, 0, lane, 4)
        for pass_index in range(3):
            places = range(pass_index * 60, pass_index * 60 + 60)
            read = [int(np.searchsorted(starts, order.sample_at(draw)[1], side="right")) - 1 for draw in places]
            runs = [shard for shard, _ in itertools.groupby(read)]
            assert len(runs) == len(set(runs)) == 3
            owned.append(frozenset(runs))
    assert len(set(owned)) == 4
    assert sorted(shard for own in set(owned) for shard in own) == list(range(12))


def test_samples_within_a_shard_are_shuffled_anew_each_pass() -> None:
    order = ShardwiseOrder(FakeShards([500], is_remote=True), 0, 0, 1)
    first, second = ([order.sample_at(draw)[1] for draw in range(start, start + 500)] for start in (0, 500))
    assert sorted(first) == sorted(second) == list(range(500))
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 10
    assert first != sorted(first)


def test_the_shard_in_use_is_asked_for_before_the_next_one() -> None:
    shards = FakeShards([3, 4, 5], is_remote=True)
    order = ShardwiseOrder(shards, 0, 0, 1)
    used = []
    for draw in range(24):
        shards.asked.clear()
        sample = order.sample_at(draw)[1]
        shard = int(np.searchsorted(shards.first_sample, sample, side="right")) - 1
        assert shards.asked[0] == shard
        assert len(shards.asked) == 2
        used.append((shard, shards.asked[1]))
    turns = [turn for turn, _ in itertools.groupby(used)]
    assert [after for _, after in turns[:-1]] == [shard for shard, _ in turns[1:]]


def test_the_order_follows_from_where_the_shards_are() -> None:
    assert isinstance(make_order(FakeShards([5]), 0, 0, 1), ScatteredOrder)
    assert isinstance(make_order(FakeShards([5], is_remote=True), 0, 0, 1), ShardwiseOrder)


# What is refused, and how it is said.


def refusal(shards: ShardSet, num_lanes: int) -> str:
    messages = set()
    for lane in range(num_lanes):
        try:
            make_order(shards, 0, lane, num_lanes)
        except ValueError as error:
            messages.add(str(error))
    (message,) = messages
    return Message(message)


def test_a_lane_without_a_sample_is_refused() -> None:
    assert refusal(FakeShards([3, 2]), 6) == ("source pets: 5 samples for data.packs_per_step (6); each lane needs one")
    assert refusal(FakeShards([30, 20], is_remote=True), 3) == (
        "source pets: 2 remote shards for data.packs_per_step (3); each lane needs one"
    )


def test_a_lane_whose_remote_shards_are_all_empty_is_refused() -> None:
    assert names(refusal(FakeShards([30, 0], is_remote=True), 2), "pets", 2, "data.packs_per_step", 2)
