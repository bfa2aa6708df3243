from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from oneflow_dist.baselines.autoregressive import AutoRegressive
from oneflow_dist.containers import NoisySample, PackedBatch, Sample
from oneflow_dist.data.packing import pack
from oneflow_dist.flow.noising import Noising
from oneflow_dist.flow.schedule import KeepSchedule
from oneflow_dist.flow.times import TimeLaw

EOS, MARK, IMAGE = 257, 999, 258


def process(copies_pieces: bool = False, context_noise: float = 0.5, **dropout: float) -> AutoRegressive:
    noising = Noising(schedule=KeepSchedule(), laws=(TimeLaw(),), **dropout)
    own = {"copies_pieces": copies_pieces, "context_noise": context_noise}
    return AutoRegressive(noising=noising, eos=EOS, mark=MARK, **own)


def noised(sample: Sample, own: AutoRegressive, seed: int = 0) -> NoisySample:
    return own.noise(own.prepare(sample), np.random.default_rng(seed))


def pairs(noisy: NoisySample) -> list[tuple[int, int]]:
    """What each row says: the token it stands at, and the one that is its bag."""
    slots = noisy.bags.slot
    assert noisy.bags.weight.tolist() == [1.0] * len(slots)
    return list(zip(noisy.tokens[slots].tolist(), noisy.bags.tokens.tolist(), strict=True))


def seen(batch: PackedBatch) -> list[list[int]]:
    """Which rows each row sees, of one document."""
    assert batch.row_end is not None
    return [list(range(end)) for end in batch.row_end.tolist()]


def test_every_written_token_is_said_by_the_row_before_it(make_sample: Callable[..., Sample]) -> None:
    noisy = noised(make_sample([256, 1, 2, 3, 4], num_prompt=2, is_interleaved=False), process())
    assert noisy.tokens.tolist() == [256, 1, 2, 3, 4]  # what nothing follows is said, and has no row
    assert pairs(noisy) == [(1, 2), (2, 3), (3, 4), (4, EOS)]
    assert noisy.is_open.tolist() == [False, True, True, True, True]
    assert noisy.is_given.tolist() == [True, True, False, False, False]


def test_a_piece_begins_with_its_token_and_ends_with_a_mark_that_nobody_says(
    make_sample: Callable[..., Sample],
) -> None:
    noisy = noised(make_sample([256, 1, None, 2, None]), process())
    assert noisy.tokens.tolist() == [256, 1, IMAGE, MARK, 2, IMAGE, MARK]
    assert pairs(noisy) == [(256, 1), (1, IMAGE), (MARK, 2), (2, IMAGE), (MARK, EOS)]
    (images,) = noisy.pieces
    assert images.pieces.token.tolist() == [2, 5]
    assert images.is_moving.all()


def test_rows_see_what_stands_before_them_and_the_rest_of_their_piece(make_sample: Callable[..., Sample]) -> None:
    """256 1 IMAGE, four patches, mark, 2."""
    noisy = noised(make_sample([256, 1, None, 2]), process())
    batch = pack([noisy], None, sees="past")
    assert batch.token_row.tolist() == [0, 1, 2, 7, 8]
    assert [len(rows) for rows in seen(batch)] == [1, 2, 3, 7, 7, 7, 7, 8, 9]
    assert batch.counts.attention_pairs == 1 + 2 + 3 + 4 * 7 + 8 + 9


def test_a_clean_copy_stands_between_a_noisy_piece_and_its_mark(make_sample: Callable[..., Sample]) -> None:
    sample = make_sample([256, 1, None, 2])
    noisy = noised(sample, process(copies_pieces=True))
    (images,) = noisy.pieces
    assert noisy.tokens.tolist() == [256, 1, IMAGE, MARK, 2]
    assert images.pieces.token.tolist() == [2, 3]
    assert images.is_moving.tolist() == [True, False]
    assert images.pieces.time[1] == 1.0
    assert np.array_equal(images.pieces.patches[4:], sample.pieces[0].patches)
    batch = pack([noisy], None, sees="past")
    assert batch.token_row.tolist() == [0, 1, 2, 11, 12]  # the mark comes after the copy
    assert batch.pieces[0].patch_row.tolist() == list(range(3, 11))
    assert [len(rows) for rows in seen(batch)] == [1, 2, 3, *[7] * 4, *[11] * 4, 12, 13]


def test_text_behind_a_piece_limits_its_noise_unless_there_is_a_copy(make_sample: Callable[..., Sample]) -> None:
    sample = make_sample([256, None, 1, None], num_prompt=1)
    for own, low in ((process(), 0.5), (process(context_noise=0.2), 0.8), (process(copies_pieces=True), 0.0)):
        times = np.stack(
            [
                noisy.pieces[0].pieces.time[noisy.pieces[0].is_moving]
                for noisy in (noised(sample, own, n) for n in range(400))
            ]
        )
        assert times[:, 0].min() == pytest.approx(low, abs=0.02)
        assert times[:, 1].min() == pytest.approx(0.0, abs=0.02)  # only `<|eos|>` follows the last one
        assert times.mean(0) == pytest.approx([0.5 * (low + 1.0), 0.5], abs=0.04)


def test_given_pieces_are_clean_and_have_no_copy(make_sample: Callable[..., Sample]) -> None:
    sample = make_sample([256, None, 1, 2], num_prompt=2, is_interleaved=False)
    noisy = noised(sample, process(copies_pieces=True))
    assert noisy.tokens.tolist() == [256, IMAGE, MARK, 1, 2]
    assert pairs(noisy) == [(MARK, 1), (1, 2), (2, EOS)]
    assert noisy.pieces[0].pieces.time.tolist() == [1.0]
    assert noisy.is_given.tolist() == [True, True, True, False, False]


def test_where_pieces_alone_are_made_no_text_is_said(make_sample: Callable[..., Sample]) -> None:
    noisy = noised(make_sample([256, 1, 2, None], num_prompt=3, is_interleaved=False), process(copies_pieces=True))
    assert noisy.tokens.tolist() == [256, 1, 2, IMAGE]
    assert len(noisy.bags.tokens) == noisy.is_open.sum() == 0
    assert noisy.pieces[0].is_moving.all()


@pytest.mark.parametrize("copies", [False, True])
def test_without_its_condition_a_sample_is_its_noisy_pieces(make_sample: Callable[..., Sample], copies: bool) -> None:
    own = process(copies, condition_dropout_prob=1.0)
    noisy = noised(make_sample([256, 1, None, 2, None, 3]), own)
    assert noisy.tokens.tolist() == [256, IMAGE, IMAGE]
    assert noisy.pieces[0].is_moving.all()
    batch = pack([noisy], None, sees="past")
    assert batch.token_row.tolist() == [0, 1, 6]  # each before its patches
    assert not noisy.is_open.any()


def test_without_its_prompt_a_sample_says_the_same(make_sample: Callable[..., Sample]) -> None:
    sample = make_sample([256, 1, 2, 3, 4], num_prompt=3, is_interleaved=False)
    noisy = noised(sample, process(prompt_dropout_prob=1.0))
    assert noisy.tokens.tolist() == [256, 256, 3, 4]
    assert noisy.bags.tokens.tolist() == [3, 4, EOS]


def test_a_prepared_sample_has_all_rows_that_its_noisy_one_may_have(make_sample: Callable[..., Sample]) -> None:
    for copies in (False, True):
        own = process(copies)
        prepared = own.prepare(make_sample([256, 1, None, 2, None]))
        noisy = own.noise(prepared, np.random.default_rng(0))
        rows = len(noisy.tokens) + len(noisy.pieces[0].pieces.patches)
        assert prepared.num_rows == rows + 1  # `<|eos|>`


def test_what_ends_with_eos_already_gets_no_other(make_sample: Callable[..., Sample]) -> None:
    sample = make_sample([256, 1, EOS], is_interleaved=False)
    assert process().prepare(sample).tokens.tolist() == [256, 1, EOS]


def test_spans_of_an_instant_are_those_of_the_pieces(make_sample: Callable[..., Sample]) -> None:
    own = process()
    sample = own.prepare(make_sample([256, 1, None]))
    for low in (0.0, 0.25, 0.75):
        noisy = own.look_at(sample, np.random.default_rng(1), (0.0, 1.0), (low, low + 0.25))
        assert low <= noisy.pieces[0].pieces.time[0] < low + 0.25


def test_packed_documents_are_as_they_are_alone(make_sample: Callable[..., Sample]) -> None:
    own = process(copies_pieces=True)
    samples = [
        noised(make_sample(tokens), own, n) for n, tokens in enumerate(([256, 1, None, 2], [256, None, 3], [256, 4]))
    ]
    together = pack(samples, None, sees="past")
    assert together.row_end is not None
    alone = [pack([sample], None, sees="past") for sample in samples]
    starts = together.cu_seqlens[:4].tolist()
    parts = [own.row_end + start for own, start in zip(alone, starts, strict=False) if own.row_end is not None]
    assert torch.equal(together.row_end, torch.cat(parts).int())
    assert together.counts.attention_pairs == sum(own.counts.attention_pairs for own in alone)


def test_padding_sees_nothing_of_the_documents(make_sample: Callable[..., Sample]) -> None:
    from oneflow_dist.data.packing import size_of

    noisy = noised(make_sample([256, 1, None, 2]), process())
    size = size_of([noisy])
    batch = pack([noisy], replace(size, rows=size.rows + 5), sees="past")
    assert batch.row_end is not None
    assert batch.row_end[size.rows :].tolist() == [size.rows + 5] * 5
    assert int(batch.row_end[: size.rows].max()) == size.rows
