from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oneflow_dist.containers import Bags, Capacity, NoisyPieces, NoisySample, PackedBatch, PackedPieces, Pieces
from oneflow_dist.data.packing import FEWEST_SEQUENCES, pack, rows_of, size_of
from tests.noising import with_bags
from tests.pieces import noisy_pieces

ROOM = Capacity(rows=90, tokens=60, bag_tokens=40, sequences=8, pieces=(9,), patches=(36,))


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


def images(of: NoisySample) -> Pieces:
    """Of the only modality."""
    return noisy_images(of).pieces


def noisy_images(of: NoisySample) -> NoisyPieces:
    (of_kind,) = of.pieces
    return of_kind


def packed(batch: PackedBatch) -> PackedPieces:
    (of_kind,) = batch.pieces
    return of_kind


def with_moving(of: NoisySample, *is_moving: bool) -> NoisySample:
    return replace(of, pieces=(replace(noisy_images(of), is_moving=np.array(is_moving)),))


def test_rows_are_tokens_in_order_each_image_followed_by_its_patches(
    samples: list[NoisySample],
) -> None:
    batch = pack(samples, None)
    token_rows, patch_rows, row, image = [], [], 0, 0
    for sample in samples:
        for place in range(len(sample.tokens)):
            token_rows.append(row)
            row += 1
            if place in images(sample).token:
                patch_rows += range(row, row + NUM_PATCHES[image])
                row += NUM_PATCHES[image]
                image += 1
    assert batch.token_row.tolist() == token_rows
    assert packed(batch).patch_row.tolist() == patch_rows
    assert batch.tokens.tolist() == np.concatenate([s.tokens for s in samples]).tolist()


def test_a_row_that_holds_something_belongs_to_one_token_or_one_patch(samples: list[NoisySample]) -> None:
    batch = pack(samples, ROOM)
    assert sorted(torch.cat([batch.token_row, packed(batch).patch_row]).tolist()) == list(range(batch.counts.rows))
    assert packed(batch).patch_piece.tolist() == np.repeat(np.arange(4), NUM_PATCHES).tolist()


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
    moved = replace(noisy_images(noisy), pieces=replace(images(noisy), token=np.array([1, 3, 4])))
    batch = pack([replace(noisy, pieces=(moved,))], None)

    def patches(start: int, rows: int, columns: int) -> list[list[int]]:
        return [[start, start + row, start + column] for row in range(rows) for column in range(columns)]

    def text(place: int) -> list[list[int]]:
        return [[place] * 3]

    first = [*text(0), *text(1), *patches(2, 2, 4), *text(6), *text(7), *patches(8, 3, 1)]
    assert batch.position.tolist() == [*first, *text(11), *patches(12, 1, 1), *text(13)]
    assert batch.token_row.tolist() == [0, 1, 10, 11, 15, 17]
    assert packed(batch).patch_row.tolist() == [*range(2, 10), *range(12, 15), 16]
    assert packed(batch).patch_piece.tolist() == [*[0] * 8, *[1] * 3, 2]


def test_images_of_three_grids_lie_in_one_pack_as_they_do_alone(make_noisy: Callable[..., NoisySample]) -> None:
    """Shifted by what lies before them."""
    rng = np.random.default_rng(0)
    samples = [make_noisy(rng, grid=grid) for grid in ((2, 3), (1, 7), (4, 4))]
    together = pack(samples, None)
    row = image = patch = 0
    for sample in samples:
        alone = pack([sample], None)
        rows, own = slice(row, row + alone.counts.rows), slice(patch, patch + len(packed(alone).patches))
        assert torch.equal(together.position[rows], alone.position)
        assert torch.equal(packed(together).patch_row[own], packed(alone).patch_row + row)
        assert torch.equal(packed(together).patch_piece[own], packed(alone).patch_piece + image)
        for name in ("patches", "velocity", "patch_weight"):
            assert torch.equal(getattr(packed(together), name)[own], getattr(packed(alone), name)), name
        row, image, patch = rows.stop, image + 1, own.stop
    assert row == together.counts.rows


def test_bags_move_with_their_slots(samples: list[NoisySample]) -> None:
    batch = pack(samples, ROOM)
    first = np.cumsum([0, *[len(s.tokens) for s in samples]])
    expected = np.concatenate([s.bags.slot + offset for s, offset in zip(samples, first, strict=False)])
    assert batch.bag_slot.tolist() == expected.tolist()
    assert batch.bag_tokens.tolist() == np.concatenate([s.bags.tokens for s in samples]).tolist()
    missing = np.bincount(expected, minlength=len(batch.tokens))
    assert batch.missing_count.tolist() == missing.tolist()
    assert batch.filled_prob.tolist() == (missing > 0).tolist()
    assert (batch.bag_slot.diff() >= 0).all()


@pytest.mark.parametrize(("normalize", "weight"), [("paper", 1 / 3), ("batch", 1.0)])
def test_an_open_slot_weighs_one_or_its_part_of_its_sample(
    samples: list[NoisySample], normalize: str, weight: float
) -> None:
    is_open = np.array([False, True, False, True, True, False, False])
    samples = [with_bags(replace(samples[0], is_open=is_open), [1, 1, 3, 4]), *samples[1:]]
    batch = pack(samples, ROOM, normalize)
    assert batch.slot_weight[:7].tolist() == pytest.approx((is_open * weight).tolist())
    num_tokens = batch.counts.text_tokens
    sums = torch.zeros(len(samples)).index_add(0, batch.token_sequence[:num_tokens], batch.slot_weight[:num_tokens])
    counted = batch.counts.text_sequences if normalize == "paper" else batch.counts.open_slots
    assert float(sums.sum()) == pytest.approx(counted)  # what the losses are divided by
    num_bag = batch.counts.bag_tokens
    assert torch.equal(batch.bag_weight[:num_bag], batch.slot_weight[batch.bag_slot[:num_bag]])


@pytest.mark.parametrize("normalize", ["paper", "batch"])
def test_averaged_bags_weigh_as_often_as_their_tokens_are_expected_in_slots_of_their_weight(
    samples: list[NoisySample], normalize: str
) -> None:
    rng = np.random.default_rng(0)
    for number, sample in enumerate(samples):
        names = ("weight", "missing_count", "filled_prob")
        random = {name: rng.random(len(getattr(sample.bags, name)), dtype=np.float32) for name in names}
        samples[number] = replace(sample, bags=replace(sample.bags, **random))
    batch = pack(samples, ROOM, normalize)
    weight = np.concatenate([s.bags.weight for s in samples])
    np.testing.assert_allclose(batch.bag_weight, weight * batch.slot_weight[batch.bag_slot].numpy(), rtol=1e-6)
    for name in ("missing_count", "filled_prob"):
        np.testing.assert_array_equal(getattr(batch, name), np.concatenate([getattr(s.bags, name) for s in samples]))


def test_rows_have_the_attention_scale_of_their_sample_and_padding_has_none(samples: list[NoisySample]) -> None:
    assert pack(samples, ROOM).attention_scale is None
    scales = [1.0, 0.5, 1.0, 0.25]
    batch = pack([replace(s, attention_scale=scale) for s, scale in zip(samples, scales, strict=True)], ROOM)
    assert batch.attention_scale is not None
    lengths = [size_of([s]).rows for s in samples]
    expected = np.repeat([*scales, 1.0], [*lengths, ROOM.rows - sum(lengths)])
    assert batch.attention_scale.tolist() == expected.tolist()
    assert len(batch.tensors()) == len(pack(samples, ROOM).tensors()) + 1


def test_only_rows_and_images_are_padded_to_the_capacity(samples: list[NoisySample]) -> None:
    batch, plain = pack(samples, ROOM), pack(samples, None)
    padded = {"position", "time", "grid", "sequence", "cu_seqlens"}
    lengths = (len(batch.position), *(len(getattr(packed(batch), name)) for name in ("time", "grid", "sequence")))
    assert lengths == (ROOM.rows, *ROOM.pieces, *ROOM.pieces, *ROOM.pieces)
    for one, other in ((batch, plain), (packed(batch), packed(plain))):
        for name in (field.name for field in fields(one)):
            if name not in padded and isinstance(getattr(one, name), torch.Tensor):
                assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert plain.counts.padded_rows == plain.counts.rows == len(plain.position)


@pytest.mark.parametrize("count", [1, FEWEST_SEQUENCES - 1, FEWEST_SEQUENCES, 2 * FEWEST_SEQUENCES])
def test_sequence_bounds_have_few_lengths(make_noisy: Callable[..., NoisySample], count: int) -> None:
    sample = make_noisy(np.random.default_rng(0), num_tokens=2, num_images=0)
    length = len(pack([sample] * count, replace(ROOM, rows=4000)).cu_seqlens) - 1
    assert length >= max(FEWEST_SEQUENCES, count + 1)  # the padding is one more
    assert length in (FEWEST_SEQUENCES, 2 * FEWEST_SEQUENCES, 4 * FEWEST_SEQUENCES)


def test_counts_are_those_of_the_samples(samples: list[NoisySample]) -> None:
    samples[1] = with_bags(replace(samples[1], is_open=np.zeros(9, dtype=bool)), [], np.zeros(0, int))
    samples[3] = with_moving(samples[3], True, False, True)
    counts = pack(samples, ROOM).counts
    lengths = [7 + 3, 9, 1, 5 + 14]
    assert counts.open_slots == 7 + 1 + 5
    assert counts.text_sequences == 3
    assert counts.patches == (3 + 4 + 4 + 6,)
    assert counts.moving_elements == ((3 + 4 + 6) * 16,)
    assert counts.rows == sum(lengths)
    assert counts.padded_rows == ROOM.rows
    assert counts.text_tokens == 7 + 9 + 1 + 5
    assert counts.bag_tokens == 4 + 2
    assert counts.filled_slots == len(set(samples[0].bags.slot.tolist())) + 1
    assert counts.sequences == 4
    assert counts.attention_pairs == sum(length**2 for length in lengths)


def test_filled_slots_of_a_pack_are_known(samples: list[NoisySample]) -> None:
    batch = pack(samples, ROOM)
    assert batch.num_filled == batch.counts.filled_slots == len(batch.bag_slot.unique())


def test_images_keep_their_order_and_values(samples: list[NoisySample]) -> None:
    samples[3] = with_moving(samples[3], True, False, True)
    batch = pack(samples, ROOM)
    for name, parts in (
        ("patches", [images(s).patches for s in samples]),
        ("velocity", [noisy_images(s).velocity for s in samples]),
        ("time", [images(s).time for s in samples]),
    ):
        expected = np.concatenate(parts).astype(np.float32)
        np.testing.assert_array_equal(getattr(packed(batch), name)[: len(expected)], expected)
    assert packed(batch).grid[:4].tolist() == [[1, *grid] for grid in GRIDS]
    assert packed(batch).sequence[:4].tolist() == [0, 3, 3, 3]
    weight = np.repeat([1.0, 1.0, 0.0, 1.0], NUM_PATCHES)
    assert packed(batch).patch_weight[: len(weight)].tolist() == weight.tolist()
    assert batch.keys == ("s0", "s1", "s2", "s3")


def total(chosen: list[Capacity]) -> np.ndarray:
    return np.sum([size.to_list() for size in chosen], axis=0)


def test_sizes_add_up(samples: list[NoisySample]) -> None:
    assert (total([size_of([s]) for s in samples]) == size_of(samples).to_list()).all()
    assert len(size_of(samples).to_list()) == len(fields(Capacity))  # of one modality; rows are the first
    assert size_of(samples).to_list()[0] == size_of(samples).rows


# Several modalities.

SIDES = {"image": (1, 3, 3), "sound": (5, 1, 1), "video": (3, 2, 3), "vector": (1, 1, 1)}  # the longest of each
ELEMENTS = {"image": 16, "sound": 8, "video": 4, "vector": 5}


def mixed(kinds: tuple[str, ...], seed: int, num_text: int = 5, most: int = 2) -> NoisySample:
    """Text with up to `most` pieces of each kind anywhere behind the first token, none of some."""
    rng = np.random.default_rng(seed)
    numbers = rng.integers(most + 1, size=len(kinds))
    tokens = rng.integers(256, size=num_text + numbers.sum())
    places = rng.permutation(np.arange(1, len(tokens)))[: numbers.sum()]
    of_kinds = []
    for kind, own in zip(kinds, np.split(places, np.cumsum(numbers)[:-1]), strict=True):
        grid = rng.integers(1, np.array(SIDES[kind]) + 1, size=(len(own), 3))
        noisy = noisy_pieces(np.sort(own).tolist(), grid, ELEMENTS[kind], seed)
        stride = np.where(rng.random(len(own)) < 0.3, 0.4, 1.0)
        of_kinds.append(replace(noisy, pieces=replace(noisy.pieces, stride=stride)))
    return NoisySample(
        key=f"s{seed}",
        tokens=tokens,
        is_given=np.arange(len(tokens)) == 0,
        is_open=np.ones(len(tokens), dtype=bool),
        bags=Bags.of_tokens(tokens[:0], tokens[:0], len(tokens)),
        pieces=tuple(of_kinds),
        text_time=0.5,
    )


def lay_by_definition(sample: NoisySample) -> tuple[list[tuple[str, int, int]], list[list[float]]]:
    """Row by row: a token or a patch, of which modality and which; and its position."""
    rows, positions, place = [], [], 0
    seen = [0] * len(sample.pieces)
    for number in range(len(sample.tokens)):
        rows.append(("token", 0, number))
        positions.append([place] * 3)
        place += 1
        for kind, pieces in enumerate(noisy.pieces for noisy in sample.pieces):
            for piece in np.flatnonzero(pieces.token == number):
                times, height, width = pieces.grid[piece]
                stride = float(pieces.stride[piece])
                for t, r, c in itertools.product(range(times), range(height), range(width)):
                    rows.append(("patch", kind, seen[kind]))
                    positions.append([place + t * stride, place + r * stride, place + c * stride])
                    seen[kind] += 1
                place += math.ceil(max(times, height, width) * stride)
    return rows, positions


@pytest.mark.parametrize("kinds", [("image",), ("image", "sound"), ("sound", "video", "image"), ("vector", "video")])
def test_rows_and_positions_of_all_modalities_are_those_of_the_definition(kinds: tuple[str, ...]) -> None:
    """Patches of any modality right after their token, frame by frame and row by row, in strides."""
    samples = [mixed(kinds, seed) for seed in range(20)]
    assert {len(noisy.pieces) for sample in samples for noisy in sample.pieces} == {0, 1, 2}
    batch = pack(samples, None)
    for of_kind in batch.pieces:
        sequence = torch.bucketize(of_kind.patch_row, batch.cu_seqlens[1:], right=True)
        assert torch.equal(of_kind.sequence[of_kind.patch_piece], sequence)
    first_row = first_token = 0
    first_patch = [0] * len(kinds)
    for sample in samples:
        rows, positions = lay_by_definition(sample)
        own = batch.position[first_row : first_row + len(rows)]
        torch.testing.assert_close(own, torch.tensor(positions, dtype=torch.float32))
        assert len(own.unique(dim=0)) == len(rows)  # no two rows share a position
        for row, (what, kind, number) in enumerate(rows, start=first_row):
            place = (
                batch.token_row[first_token + number]
                if what == "token"
                else batch.pieces[kind].patch_row[first_patch[kind] + number]
            )
            assert place == row
        first_row, first_token = first_row + len(rows), first_token + len(sample.tokens)
        first_patch = [first + len(n.pieces.patches) for first, n in zip(first_patch, sample.pieces, strict=True)]
    assert first_row == batch.counts.rows == batch.counts.padded_rows


def test_a_piece_stands_along_its_own_axes_and_text_goes_on_after_its_longest_side() -> None:
    """A vector is at one place, a sound goes along time, a video along all three axes."""
    grids = {"vector": (1, 1, 1), "sound": (3, 1, 1), "video": (2, 1, 4)}
    kinds = tuple(noisy_pieces([1 + number], grid, ELEMENTS[name]) for number, (name, grid) in enumerate(grids.items()))
    tokens = np.arange(5)
    sample = NoisySample(
        key="s",
        tokens=tokens,
        is_given=tokens == 0,
        is_open=tokens > 0,
        bags=Bags.of_tokens(tokens[:0], tokens[:0], 5),
        pieces=kinds,
        text_time=1.0,
    )
    batch = pack([sample], None)
    assert batch.position.tolist() == [
        *([[0] * 3, [1] * 3, [2] * 3]),  # a token, that of the vector, the vector
        *([[3] * 3, [4, 4, 4], [5, 4, 4], [6, 4, 4]]),
        *([[7] * 3, *([8 + t, 8, 8 + c] for t in range(2) for c in range(4))]),
        [12] * 3,
    ]
    assert [p.patch_row.tolist() for p in batch.pieces] == [[2], [4, 5, 6], [*range(8, 16)]]


def test_each_modality_keeps_its_values_times_and_counts_and_may_be_absent() -> None:
    kinds = ("image", "sound", "vector")
    room = Capacity(rows=400, tokens=200, bag_tokens=9, sequences=16, pieces=(30, 20, 10), patches=(200, 90, 9))
    samples = [mixed(kinds, seed) for seed in range(6)]
    none = replace(
        samples[0],
        pieces=tuple(noisy_pieces([], (1, 1, 1), ELEMENTS[kind]) for kind in kinds),
    )
    for of_pack in (samples, [none, none]):
        batch = pack(of_pack, room)
        for number, of_kind in enumerate(batch.pieces):
            own = [sample.pieces[number] for sample in of_pack]
            num_pieces = sum(len(noisy.pieces) for noisy in own)
            assert len(of_kind.time) == len(of_kind.grid) == room.pieces[number]
            for name, parts in (
                ("patches", [noisy.pieces.patches for noisy in own]),
                ("velocity", [noisy.velocity for noisy in own]),
            ):
                np.testing.assert_array_equal(getattr(of_kind, name), np.concatenate(parts))
            times = np.concatenate([noisy.pieces.time for noisy in own]).astype(np.float32)
            np.testing.assert_array_equal(of_kind.time[:num_pieces], times)
            assert batch.counts.patches[number] == len(of_kind.patches)
            assert batch.counts.moving_elements[number] == of_kind.velocity.numel()
        assert batch.counts.rows == batch.counts.text_tokens + sum(batch.counts.patches)
    assert batch.counts.patches == (0, 0, 0)


def test_what_is_only_given_has_no_velocity_and_counts_no_moving_elements() -> None:
    sample = mixed(("image", "vector"), 3)
    still = replace(
        sample.pieces[1],
        velocity=np.zeros((len(sample.pieces[1].pieces.patches), 0), np.float32),
        is_moving=np.zeros(len(sample.pieces[1].pieces), dtype=bool),
    )
    batch = pack([replace(sample, pieces=(sample.pieces[0], still))], None)
    assert batch.pieces[1].velocity.shape == (batch.counts.patches[1], 0)
    assert batch.counts.moving_elements == (16 * batch.counts.patches[0], 0)


# Prompts and blocks that see no more than themselves and what is before them.


def block_of_rows(sample: NoisySample) -> list[tuple[tuple[str, int, int], int]]:
    """Row by row, as `lay_by_definition`, with the block it is of: that of a patch, or of the slot behind a token."""
    rows, _ = lay_by_definition(sample)
    places = [n for kind in sample.pieces for n in kind.pieces.token.tolist()]
    numbers = [(kind, i) for kind, noisy in enumerate(sample.pieces) for i in range(len(noisy.pieces))]
    token_of = {}
    for (kind, piece), place in zip(numbers, places, strict=True):
        pieces = sample.pieces[kind].pieces
        first = int(pieces.num_patches[:piece].sum())
        token_of |= {(kind, first + n): place for n in range(int(pieces.num_patches[piece]))}
    found = []
    for what, kind, number in rows:
        token = number + 1 if what == "token" else token_of[kind, number]
        found.append(((what, kind, number), sum(token >= end for end in sample.block_ends)))
    return found


@given(st.integers(0, 10_000), st.lists(st.integers(1, 12), max_size=4, unique=True).map(sorted))
def test_rows_see_their_sequence_up_to_the_end_of_their_block(seed: int, ends: list[int]) -> None:
    samples = [mixed(("image", "sound"), seed + n) for n in range(3)]
    samples = [replace(s, block_ends=tuple(e for e in ends if e <= len(s.tokens))) for s in samples]
    size = size_of(samples)
    batch = pack(samples, replace(size, rows=size.rows + 3, pieces=size.pieces), sees="prompt")
    plain = pack(samples, replace(size, rows=size.rows + 3, pieces=size.pieces))
    assert batch.row_end is not None
    assert plain.row_end is None
    starts, pairs, first_token, first_patch = batch.cu_seqlens.tolist(), 0, 0, [0, 0]
    for sample, start, end in zip(samples, starts, starts[1:], strict=False):
        expected = sorted(block_of_rows(sample), key=lambda row: row[1])  # stable: in reading order otherwise
        for row, ((what, kind, number), block) in enumerate(expected, start=start):
            rows, first = (
                (batch.token_row, first_token) if what == "token" else (batch.pieces[kind].patch_row, first_patch[kind])
            )
            assert rows[first + number] == row
            seen = start + sum(other <= block for _, other in expected)
            assert batch.row_end[row] == seen
            pairs += seen - start
        assert len(expected) == end - start
        first_token += len(sample.tokens)
        first_patch = [first + len(own.pieces.patches) for first, own in zip(first_patch, sample.pieces, strict=True)]
    assert batch.counts.attention_pairs == pairs
    assert batch.row_end[-3:].tolist() == [size.rows + 3] * 3
    assert batch.tokens.equal(plain.tokens)
    assert batch.position[batch.token_row].equal(plain.position[plain.token_row])
    for own, other in zip(batch.pieces, plain.pieces, strict=True):
        assert batch.position[own.patch_row].equal(plain.position[other.patch_row])


@given(st.integers(0, 10_000), st.integers(1, 4))
def test_some_rows_of_a_pack_stand_where_they_stood(seed: int, multiple: int) -> None:
    """Of each document those behind its prompt, padded to a multiple."""
    samples = [replace(mixed(("image", "sound"), seed + n), block_ends=(2 + n,)) for n in range(3)]
    batch = pack(samples, None, sees="prompt")
    assert batch.row_end is not None
    ends = batch.cu_seqlens[torch.bucketize(torch.arange(len(batch.position)), batch.cu_seqlens, right=True).long()]
    is_kept = batch.row_end == ends
    part = rows_of(batch, is_kept, multiple)
    num_kept = int(is_kept.sum())
    assert len(part.position) == part.cu_seqlens[-1] == -(-num_kept // multiple) * multiple
    assert part.position[:num_kept].equal(batch.position[is_kept])
    kept_rows = is_kept.nonzero().flatten()
    has_token = is_kept[batch.token_row]
    assert part.tokens.equal(batch.tokens[has_token])
    assert kept_rows[part.token_row].equal(batch.token_row[has_token])
    for own, whole in zip(part.pieces, batch.pieces, strict=True):
        has_patch = is_kept[whole.patch_row]
        assert kept_rows[own.patch_row].equal(whole.patch_row[has_patch])
        assert own.patches.equal(whole.patches[has_patch])
        assert own.time[own.patch_piece].equal(whole.time[whole.patch_piece][has_patch])
        assert own.grid[own.patch_piece].equal(whole.grid[whole.patch_piece][has_patch])
        assert len(own.time) == len(own.grid) == len(own.sequence) == len(own.patch_piece.unique())
    starts, kept = batch.cu_seqlens[:4].tolist(), part.cu_seqlens[:4].tolist()
    assert [b - a for a, b in itertools.pairwise(kept)] == [
        int(is_kept[a:b].sum()) for a, b in itertools.pairwise(starts)
    ]
