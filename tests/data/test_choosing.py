"""Which samples make a pack: never more than fits, the oldest always, and of balanced packs equal attention work."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneflow_dist.containers import Capacity
from oneflow_dist.data.choosing import choose_samples

ROOM = Capacity(rows=90, tokens=60, bag_tokens=40, sequences=8, pieces=(9,), patches=(36,))
WINDOW = 256

sizes = st.builds(
    lambda tokens, bag, images, patches: Capacity(
        rows=tokens + images * patches,
        tokens=tokens,
        bag_tokens=bag,
        pieces=(images,),
        patches=(images * patches,),
        sequences=1,
    ),
    st.integers(1, 40),
    st.integers(0, 40),
    st.integers(0, 9),
    st.integers(1, 4),
)


def total(chosen: list[Capacity]) -> np.ndarray:
    return np.sum([size.to_list() for size in chosen], axis=0)


WAYS = st.sampled_from([None, 1.0, 7.5, 30.0, 1000.0])


@given(st.lists(sizes, min_size=1, max_size=16), WAYS)
def test_chosen_samples_never_exceed_the_capacity(waiting: list[Capacity], row_pairs: float | None) -> None:
    chosen = choose_samples(waiting, ROOM, row_pairs)
    assert len(set(chosen)) == len(chosen) > 0
    room = np.array(replace(ROOM, sequences=ROOM.sequences - 1).to_list())
    assert (total([waiting[i] for i in chosen]) <= room).all()


@given(st.lists(sizes, min_size=1, max_size=16), WAYS)
def test_no_waiting_sample_would_still_fit(waiting: list[Capacity], row_pairs: float | None) -> None:
    chosen = choose_samples(waiting, ROOM, row_pairs)
    used = total([waiting[i] for i in chosen])
    room = np.array(replace(ROOM, sequences=ROOM.sequences - 1).to_list())
    others = [size for i, size in enumerate(waiting) if i not in chosen]
    assert not any((used + size.to_list() <= room).all() for size in others)


@given(st.lists(sizes, min_size=1, max_size=16), WAYS)
def test_the_oldest_sample_never_waits(waiting: list[Capacity], row_pairs: float | None) -> None:
    assert 0 in choose_samples(waiting, ROOM, row_pairs)


def test_one_sequence_is_kept_free_for_the_padding() -> None:
    one = Capacity(rows=1, tokens=1, bag_tokens=0, pieces=(0,), patches=(0,), sequences=1)
    assert choose_samples([one] * 12, ROOM) == list(range(ROOM.sequences - 1))


def test_the_gap_is_filled_with_the_largest_that_fits() -> None:
    def text(rows: int) -> Capacity:
        return Capacity(rows=rows, tokens=rows, bag_tokens=0, pieces=(0,), patches=(0,), sequences=1)

    room = Capacity(rows=100, tokens=100, bag_tokens=10, pieces=(1,), patches=(4,), sequences=9)
    assert choose_samples([text(n) for n in (40, 30, 50, 10, 25, 20)], room) == [0, 1, 4]


def test_a_pack_holds_no_more_patches_than_it_has_room_for() -> None:
    """Whether they are those of few large images or of many small ones."""

    def of_images(count: int, patches: int) -> Capacity:
        return Capacity(rows=1 + patches, tokens=1, bag_tokens=0, pieces=(count,), patches=(patches,), sequences=1)

    assert choose_samples([of_images(1, 20), of_images(1, 17), of_images(1, 16), of_images(8, 8)], ROOM) == [0, 2]
    assert choose_samples([of_images(8, 8), of_images(2, 2), of_images(1, 1)], ROOM) == [0, 2]


def test_a_sample_larger_than_a_pack_is_our_own_error() -> None:
    with pytest.raises(AssertionError, match="must be refused when it is decoded"):
        choose_samples([replace(ROOM, sequences=1, rows=91)], ROOM)


def test_the_room_of_each_modality_is_kept_for_itself() -> None:
    def of(images: int, sounds: int, patches: tuple[int, int]) -> Capacity:
        rows = 1 + images + sounds + sum(patches)
        pieces = (images, sounds)
        return Capacity(rows=rows, tokens=rows, bag_tokens=0, sequences=1, pieces=pieces, patches=patches)

    room = Capacity(rows=200, tokens=200, bag_tokens=9, sequences=9, pieces=(3, 2), patches=(12, 40))
    waiting = [of(2, 0, (8, 0)), of(2, 0, (8, 0)), of(0, 1, (0, 30)), of(0, 1, (0, 11)), of(1, 1, (4, 10))]
    assert choose_samples(waiting, room) == [0, 2, 4]  # no third image, no more than 40 patches of sound


# Packs of equal attention work.


def text(rows: int) -> Capacity:
    return Capacity(rows=rows, tokens=rows, bag_tokens=0, pieces=(0,), patches=(0,), sequences=1)


def room_for(rows: int) -> Capacity:
    return Capacity(rows=rows, tokens=rows, bag_tokens=10, pieces=(1,), patches=(4,), sequences=rows)


def test_two_of_different_lengths_bring_out_rows_and_pairs() -> None:
    """After 40 rows there are 60 to fill, with 2,000 pairs: 40 and 20, not the oldest, the longest or two of 30."""
    waiting = [text(n) for n in (40, 30, 55, 31, 20, 5, 40)]
    assert sorted(choose_samples(waiting, room_for(100), 36.0)) == [0, 4, 6]


def test_the_oldest_go_first_while_the_rest_can_make_up_for_them() -> None:
    waiting = [text(n) for n in (12, 9, 10, 8, 11, 10, 9, 11, 10, 8)]
    assert choose_samples(waiting, room_for(60), 10.0)[:3] == [0, 1, 2]


def test_a_second_long_one_waits_for_a_pack_of_its_own() -> None:
    """100 rows of 20 pairs each: one of 40 leaves 400 pairs for 60 rows, which are those of short ones."""
    waiting = [text(n) for n in (40, 40, 40, *[7] * 20)]
    chosen = choose_samples(waiting, room_for(100), 20.0)
    assert [index for index in chosen if index < 3] == [0]
    assert len(chosen) == 9


def pack_all(lengths: np.ndarray, rows: int, is_balanced: bool) -> tuple[list[list[int]], list[int]]:
    """What each pack that a lane fills holds, and for how many draws each of it waited."""
    packs, waits, waiting, drawn = list[list[int]](), list[int](), list[int](), 0
    sizes = [text(int(length)) for length in lengths]
    while True:
        while len(waiting) < WINDOW:
            if drawn == len(lengths):
                return packs, waits
            waiting.append(drawn)
            drawn += 1
        so_far = lengths[:drawn]
        row_pairs = float(np.square(so_far).sum() / so_far.sum()) if is_balanced else None
        chosen = choose_samples([sizes[index] for index in waiting], room_for(rows), row_pairs)
        packs.append([waiting[place] for place in chosen])
        waits += [drawn - index for index in packs[-1]]
        waiting = [index for index in waiting if index not in packs[-1]]


@pytest.fixture(scope="module")
def lengths() -> np.ndarray:
    """Documents of very different lengths; the longest have as many pairs as half a pack of 8,192 rows."""
    rng = np.random.default_rng(0)
    return np.clip(np.exp(rng.normal(6.0, 0.8, size=3000)), 16, 2048).astype(np.int64)


def test_balanced_packs_have_the_same_work_no_more_padding_and_no_sample_twice(lengths: np.ndarray) -> None:
    spread = {}
    for is_balanced in (False, True):
        packs, _ = pack_all(lengths, 8192, is_balanced)
        pairs = np.array([np.square(lengths[pack]).sum() for pack in packs])
        spread[is_balanced] = pairs.std() / pairs.mean()
        taken = np.concatenate(packs)
        assert len(set(taken)) == len(taken) > len(lengths) - 2 * WINDOW
        assert np.mean([lengths[pack].sum() for pack in packs]) / 8192 > 0.998
    assert spread[True] < 0.05 < 0.2 < spread[False]


def test_balanced_packs_are_fair_draws(lengths: np.ndarray) -> None:
    """No length waits for longer than others in the mean, none for ever, and packs hold as many samples as before."""
    packs, waits = pack_all(lengths, 8192, True)
    before, _ = pack_all(lengths, 8192, False)
    taken = lengths[np.concatenate(packs)]
    short, long = np.quantile(taken, [1 / 3, 2 / 3])
    mean_waits = [np.array(waits)[which].mean() for which in (taken <= short, taken > long)]
    assert 0.8 < mean_waits[0] / mean_waits[1] < 1.25
    assert max(waits) < 2 * WINDOW
    assert np.mean([len(pack) for pack in packs]) == pytest.approx(np.mean([len(pack) for pack in before]), rel=0.05)


def test_a_document_longer_than_its_share_takes_the_shortest_along() -> None:
    waiting = [text(n) for n in (90, 10, 6, 5, 5, 3)]
    assert sorted(choose_samples(waiting, room_for(100), 20.0)) == [0, 3, 5]
