from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oneflow_dist.containers import Capacity, NoisySample
from oneflow_dist.data.packing import FEWEST_SEQUENCES, choose_samples, pack, size_of

ROOM = Capacity(rows=90, tokens=60, bag_tokens=40, images=9, patches=36, sequences=8)


@pytest.fixture
def samples(make_noisy: Callable[..., NoisySample]) -> list[NoisySample]:
    """Text with an image, text alone, one token alone, many images; no two images have the same grid."""
    rng = np.random.default_rng(0)
    kinds = ((6, 4, [(1, 3)]), (9, 3, []), (1, 2, []), (2, 0, [(2, 2), (4, 1), (3, 2)]))
    return [
        make_noisy(rng, num_tokens=n, num_images=len(grid), num_bag_tokens=b, grid=grid or (1, 1), key=f"s{number}")
        for number, (n, b, grid) in enumerate(kinds)
    ]


GRIDS = [(1, 3), (2, 2), (4, 1), (3, 2)]  # of all images of the samples
NUM_PATCHES = [3, 4, 4, 6]


def test_rows_are_tokens_in_order_each_image_followed_by_its_patches(
    samples: list[NoisySample],
) -> None:
    batch = pack(samples, None)
    token_rows, patch_rows, row, image = [], [], 0, 0
    for sample in samples:
        for place in range(len(sample.tokens)):
            token_rows.append(row)
            row += 1
            if place in sample.images.token:
                patch_rows += range(row, row + NUM_PATCHES[image])
                row += NUM_PATCHES[image]
                image += 1
    assert batch.token_row.tolist() == token_rows
    assert batch.patch_row.tolist() == patch_rows
    assert batch.tokens.tolist() == np.concatenate([s.tokens for s in samples]).tolist()


def test_a_row_that_holds_something_belongs_to_one_token_or_one_patch(samples: list[NoisySample]) -> None:
    batch = pack(samples, ROOM)
    assert sorted(torch.cat([batch.token_row, batch.patch_row]).tolist()) == list(range(batch.counts.rows))
    assert batch.patch_image.tolist() == np.repeat(np.arange(4), NUM_PATCHES).tolist()
    assert torch.equal(batch.row_image[batch.patch_row], batch.patch_image)
    assert (batch.row_image == ROOM.images).sum() == ROOM.rows - sum(NUM_PATCHES)


def test_sequences_follow_each_other_and_padding_is_the_last(samples: list[NoisySample]) -> None:
    batch = pack(samples, ROOM)
    lengths = [size_of([s]).rows for s in samples]
    assert batch.cu_seqlens.diff()[:5].tolist() == [*lengths, ROOM.rows - sum(lengths)]
    assert batch.cu_seqlens.diff()[5:].tolist() == [0] * (FEWEST_SEQUENCES - 5)
    assert int(batch.cu_seqlens.diff().max()) == ROOM.rows - sum(lengths) == 51
    assert batch.max_seqlen == 64  # the next power of two


def test_no_two_rows_of_a_sequence_share_a_position(samples: list[NoisySample]) -> None:
    batch = pack(samples, None)
    for first, last in zip(batch.cu_seqlens, batch.cu_seqlens[1:], strict=False):
        assert len(batch.position[first:last].unique(dim=0)) == last - first


def test_positions_start_anew_in_every_sequence(samples: list[NoisySample]) -> None:
    together = pack(samples, None)
    alone = [pack([sample], None).position for sample in samples]
    assert torch.equal(together.position, torch.cat(alone))


def test_text_goes_on_after_the_longer_side_of_an_image(make_noisy: Callable[..., NoisySample]) -> None:
    """BOS, a wide image, a token, a high image, one patch, a token."""
    noisy = make_noisy(np.random.default_rng(0), num_tokens=3, num_images=3, grid=[(2, 4), (3, 1), (1, 1)])
    batch = pack([replace(noisy, images=replace(noisy.images, token=np.array([1, 3, 4])))], None)

    def patches(start: int, rows: int, columns: int) -> list[list[int]]:
        return [[start, start + row, start + column] for row in range(rows) for column in range(columns)]

    def text(place: int) -> list[list[int]]:
        return [[place] * 3]

    first = [*text(0), *text(1), *patches(2, 2, 4), *text(6), *text(7), *patches(8, 3, 1)]
    assert batch.position.tolist() == [*first, *text(11), *patches(12, 1, 1), *text(13)]
    assert batch.token_row.tolist() == [0, 1, 10, 11, 15, 17]
    assert batch.patch_row.tolist() == [*range(2, 10), *range(12, 15), 16]
    assert batch.row_image.tolist() == [3, 3, *[0] * 8, 3, 3, *[1] * 3, 3, 2, 3]


def test_images_of_three_grids_lie_in_one_pack_as_they_do_alone(make_noisy: Callable[..., NoisySample]) -> None:
    """Shifted by what lies before them."""
    rng = np.random.default_rng(0)
    samples = [make_noisy(rng, grid=grid) for grid in ((2, 3), (1, 7), (4, 4))]
    together = pack(samples, None)
    row = image = patch = 0
    for sample in samples:
        alone = pack([sample], None)
        rows, own = slice(row, row + alone.counts.rows), slice(patch, patch + len(alone.patches))
        assert torch.equal(together.position[rows], alone.position)
        assert torch.equal(together.patch_row[own], alone.patch_row + row)
        assert torch.equal(together.patch_image[own], alone.patch_image + image)
        for name in ("patches", "velocity", "patch_weight"):
            assert torch.equal(getattr(together, name)[own], getattr(alone, name)), name
        row, image, patch = rows.stop, image + 1, own.stop
    assert row == together.counts.rows


def test_bags_move_with_their_slots(samples: list[NoisySample]) -> None:
    batch = pack(samples, ROOM)
    first = np.cumsum([0, *[len(s.tokens) for s in samples]])
    expected = np.concatenate([s.bag_slot + offset for s, offset in zip(samples, first, strict=False)])
    assert batch.bag_slot.tolist() == expected.tolist()
    assert batch.bag_tokens.tolist() == np.concatenate([s.bag_tokens for s in samples]).tolist()
    assert batch.missing_count.tolist() == np.bincount(expected, minlength=len(batch.tokens)).tolist()
    assert (batch.bag_slot.diff() >= 0).all()


@pytest.mark.parametrize(("normalize", "weight"), [("paper", 1 / 3), ("batch", 1.0)])
def test_an_open_slot_weighs_one_or_its_part_of_its_sample(
    samples: list[NoisySample], normalize: str, weight: float
) -> None:
    is_open = np.array([False, True, False, True, True, False, False])
    samples = [replace(samples[0], is_open=is_open, bag_slot=np.array([1, 1, 3, 4])), *samples[1:]]
    batch = pack(samples, ROOM, normalize)
    assert batch.slot_weight[:7].tolist() == pytest.approx((is_open * weight).tolist())
    num_tokens = batch.counts.text_tokens
    sums = torch.zeros(len(samples)).index_add(0, batch.token_sequence[:num_tokens], batch.slot_weight[:num_tokens])
    counted = batch.counts.text_sequences if normalize == "paper" else batch.counts.open_slots
    assert float(sums.sum()) == pytest.approx(counted)  # what the losses are divided by
    num_bag = batch.counts.bag_tokens
    assert torch.equal(batch.bag_weight[:num_bag], batch.slot_weight[batch.bag_slot[:num_bag]])


def test_only_rows_and_images_are_padded_to_the_capacity(samples: list[NoisySample]) -> None:
    batch, plain = pack(samples, ROOM), pack(samples, None)
    padded = {"row_image", "position", "image_time"}
    assert (len(batch.row_image), len(batch.position), len(batch.image_time)) == (ROOM.rows, ROOM.rows, ROOM.images)
    for name, tensor in batch.tensors().items():
        if name not in padded and name != "cu_seqlens":
            assert torch.equal(tensor, getattr(plain, name)), name
    assert plain.counts.padded_rows == plain.counts.rows == len(plain.position)


@pytest.mark.parametrize("count", [1, FEWEST_SEQUENCES - 1, FEWEST_SEQUENCES, 2 * FEWEST_SEQUENCES])
def test_sequence_bounds_have_few_lengths(make_noisy: Callable[..., NoisySample], count: int) -> None:
    sample = make_noisy(np.random.default_rng(0), num_tokens=2, num_images=0)
    length = len(pack([sample] * count, replace(ROOM, rows=4000)).cu_seqlens) - 1
    assert length >= max(FEWEST_SEQUENCES, count + 1)  # the padding is one more
    assert length in (FEWEST_SEQUENCES, 2 * FEWEST_SEQUENCES, 4 * FEWEST_SEQUENCES)


def test_counts_are_those_of_the_samples(samples: list[NoisySample]) -> None:
    samples[1] = replace(
        samples[1], is_open=np.zeros(9, dtype=bool), bag_tokens=np.zeros(0, int), bag_slot=np.zeros(0, int)
    )
    samples[3] = replace(samples[3], is_moving=np.array([True, False, True]))
    counts = pack(samples, ROOM).counts
    lengths = [7 + 3, 9, 1, 5 + 14]
    assert counts.open_slots == 7 + 1 + 5
    assert counts.text_sequences == 3
    assert counts.image_elements == (3 + 4 + 6) * 16
    assert counts.rows == sum(lengths)
    assert counts.padded_rows == ROOM.rows
    assert counts.text_tokens == 7 + 9 + 1 + 5
    assert counts.bag_tokens == 4 + 2
    assert counts.filled_slots == len(set(samples[0].bag_slot.tolist())) + 1
    assert counts.sequences == 4
    assert counts.attention_pairs == sum(length**2 for length in lengths)


def test_filled_slots_of_a_pack_are_known(samples: list[NoisySample]) -> None:
    batch = pack(samples, ROOM)
    assert batch.num_filled == batch.counts.filled_slots == len(batch.bag_slot.unique())


def test_images_keep_their_order_and_values(samples: list[NoisySample]) -> None:
    samples[3] = replace(samples[3], is_moving=np.array([True, False, True]))
    batch = pack(samples, ROOM)
    for name, parts in (
        ("patches", [s.images.patches for s in samples]),
        ("velocity", [s.velocity for s in samples]),
        ("image_time", [s.images.time for s in samples]),
    ):
        expected = np.concatenate(parts).astype(np.float32)
        np.testing.assert_array_equal(getattr(batch, name)[: len(expected)], expected)
    assert [tuple(grid) for s in samples for grid in s.images.grid.tolist()] == GRIDS
    weight = np.repeat([1.0, 1.0, 0.0, 1.0], NUM_PATCHES)
    assert batch.patch_weight[: len(weight)].tolist() == weight.tolist()
    assert batch.keys == ("s0", "s1", "s2", "s3")


sizes = st.builds(
    lambda tokens, bag, images, patches: Capacity(
        rows=tokens + images * patches,
        tokens=tokens,
        bag_tokens=bag,
        images=images,
        patches=images * patches,
        sequences=1,
    ),
    st.integers(1, 40),
    st.integers(0, 40),
    st.integers(0, 9),
    st.integers(1, 4),
)


def total(chosen: list[Capacity]) -> np.ndarray:
    return np.sum([astuple(size) for size in chosen], axis=0)


@given(st.lists(sizes, min_size=1, max_size=16))
def test_chosen_samples_never_exceed_the_capacity(waiting: list[Capacity]) -> None:
    chosen = choose_samples(waiting, ROOM)
    assert len(set(chosen)) == len(chosen) > 0
    room = np.array(astuple(replace(ROOM, sequences=ROOM.sequences - 1)))
    assert (total([waiting[i] for i in chosen]) <= room).all()


@given(st.lists(sizes, min_size=1, max_size=16))
def test_no_waiting_sample_would_still_fit(waiting: list[Capacity]) -> None:
    chosen = choose_samples(waiting, ROOM)
    used = total([waiting[i] for i in chosen])
    room = np.array(astuple(replace(ROOM, sequences=ROOM.sequences - 1)))
    others = [size for i, size in enumerate(waiting) if i not in chosen]
    assert not any((used + astuple(size) <= room).all() for size in others)


@given(st.lists(sizes, min_size=1, max_size=16))
def test_the_oldest_sample_never_waits(waiting: list[Capacity]) -> None:
    assert 0 in choose_samples(waiting, ROOM)


def test_one_sequence_is_kept_free_for_the_padding() -> None:
    one = Capacity(rows=1, tokens=1, bag_tokens=0, images=0, patches=0, sequences=1)
    assert choose_samples([one] * 12, ROOM) == list(range(ROOM.sequences - 1))


def test_the_gap_is_filled_with_the_largest_that_fits() -> None:
    def text(rows: int) -> Capacity:
        return Capacity(rows=rows, tokens=rows, bag_tokens=0, images=0, patches=0, sequences=1)

    room = Capacity(rows=100, tokens=100, bag_tokens=10, images=1, patches=4, sequences=9)
    assert choose_samples([text(n) for n in (40, 30, 50, 10, 25, 20)], room) == [0, 1, 4]


def test_a_pack_holds_no_more_patches_than_it_has_room_for() -> None:
    """Whether they are those of few large images or of many small ones."""

    def images(count: int, patches: int) -> Capacity:
        return Capacity(rows=1 + patches, tokens=1, bag_tokens=0, images=count, patches=patches, sequences=1)

    assert choose_samples([images(1, 20), images(1, 17), images(1, 16), images(8, 8)], ROOM) == [0, 2]
    assert choose_samples([images(8, 8), images(2, 2), images(1, 1)], ROOM) == [0, 2]


def test_a_sample_larger_than_a_pack_is_our_own_error() -> None:
    with pytest.raises(AssertionError, match="must be refused when it is decoded"):
        choose_samples([replace(ROOM, sequences=1, rows=91)], ROOM)


def test_sizes_add_up(samples: list[NoisySample]) -> None:
    assert (total([size_of([s]) for s in samples]) == astuple(size_of(samples))).all()
    assert [f.name for f in fields(Capacity)] == ["rows", "tokens", "bag_tokens", "images", "patches", "sequences"]
