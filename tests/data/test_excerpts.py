from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneflow_dist.containers import Pieces, Sample
from oneflow_dist.data.codec import cut_pieces
from oneflow_dist.data.excerpts import MAX_HOLES, cut_window, leave_holes, take_block
from oneflow_dist.data.tokenizer import load_tokenizer
from tests.messages import Message, names
from tests.pieces import modality, pieces

GREY = modality()
TOKENIZER = load_tokenizer("bytes", {"image": GREY})
KEY = "pets/cats-000/0001"


def images(sample: Sample) -> Pieces:
    return sample.pieces[0]


def sample_of(text: str, num_prompt: int = 1, rows: int = 4) -> Sample:
    """Bytes after the first token; "#" is an image of so many rows, and after `num_prompt` tokens all are target."""
    image = TOKENIZER.piece_of["image"]
    tokens = np.array([TOKENIZER.bos, *(image if letter == "#" else ord(letter) for letter in text)])
    at = np.flatnonzero(tokens == image)
    grid = np.tile(np.array([1, 1, rows]), (len(at), 1))
    return Sample(
        key=KEY,
        tokens=tokens,
        is_target=np.arange(len(tokens)) >= num_prompt,
        pieces=(replace(pieces(at, grid, elements=1), patches=np.arange(len(at) * rows, dtype=np.float32)[:, None]),),
        is_interleaved=True,
    )


# Holes.


def stretches_of(is_target: np.ndarray) -> list[int]:
    """Lengths of the stretches of targets."""
    return [len([*run]) for there, run in itertools.groupby(is_target.tolist()) if there]


def test_holes_are_a_few_stretches_of_the_targets_and_the_rest_is_prompt() -> None:
    sample, rng = sample_of("ab" + "cdef#gh#" * 4, num_prompt=3), np.random.default_rng(0)
    counts, lengths = set(), set()
    for _ in range(500):
        holed = leave_holes(sample, rng)
        assert holed.tokens.tolist() == sample.tokens.tolist()
        assert not holed.is_target[:3].any()
        found = stretches_of(holed.is_target)
        counts.add(len(found))
        lengths.update(found)
    assert counts == set(range(1, MAX_HOLES + 1))
    assert {1, 2, 5, 10, 20} <= lengths
    assert max(lengths) > 25


def test_a_hole_is_as_likely_of_few_tokens_as_of_many() -> None:
    """Half of the holes in a hundred tokens are shorter than ten; holes that touch are one, and longer."""
    sample, rng = sample_of("a" * 100), np.random.default_rng(0)
    first = [stretches_of(leave_holes(sample, rng).is_target)[0] for _ in range(1000)]
    assert 0.35 < np.mean(np.array(first) < 10) < 0.55


def test_pieces_in_holes_are_inserted_or_made_anew_where_they_stand() -> None:
    rng = np.random.default_rng(0)
    mixed = [leave_holes(sample_of("#ab"), rng) for _ in range(400)]
    has_piece = [bool(holed.is_target[1]) for holed in mixed]
    inserted = [holed.is_interleaved for holed in mixed]
    assert all(there for there, own in zip(has_piece, inserted, strict=True) if own)
    assert 0.4 < sum(inserted) / sum(has_piece) < 0.6
    assert not any(leave_holes(sample_of("abcdef"), rng).is_interleaved for _ in range(50))


# Blocks.


STORY = "One two. Three?  Four five six seven eight nine. #Ten. (Eleven!) Twelve"


def blocks_of(sample: Sample, most_rows: int, count: int = 300) -> list[Sample]:
    rng = np.random.default_rng(0)
    return [take_block(sample, most_rows, TOKENIZER, rng) for _ in range(count)]


def spell(tokens: np.ndarray) -> str:
    return TOKENIZER.decode(tokens.tolist()).replace("<|image|>", "#")


def test_a_block_is_target_after_all_blocks_before_it_and_nothing_follows() -> None:
    sample = sample_of("ab" + STORY, num_prompt=3)
    whole = [*sample.tokens.tolist(), TOKENIZER.eos]
    ended = set()
    for block in blocks_of(sample, 24):
        first, end = block.block_ends[-1], len(block.tokens)
        assert block.tokens.tolist() == whole[:end]
        assert block.is_target.tolist() == [False] * first + [True] * (end - first)
        assert block.block_ends[0] == sample.front == 3
        assert list(block.block_ends) == sorted(set(block.block_ends))
        assert images(block).token.tolist() == [place for place in images(sample).token.tolist() if place < end]
        assert block.is_interleaved == (TOKENIZER.piece_of["image"] in block.tokens[first:])
        assert (block.tokens[-1] == TOKENIZER.eos) == (end == len(whole))
        ended.add(end)
    assert len(whole) in ended


def test_blocks_end_after_sentences_and_pieces_and_hold_no_more_than_asked() -> None:
    sample, seen = sample_of(STORY), set()
    for block in blocks_of(sample, 40):
        rows_of_images = 4 * int((images(block).token >= block.block_ends[-1]).sum())
        assert int(block.is_target.sum()) + rows_of_images <= 40
        ends = [*block.block_ends[1:], len(block.tokens)]
        seen |= {spell(block.tokens[:end]) for end in ends}
    marks = ("One two.", "Three?", "nine.", "nine. #", "Ten.", "(Eleven!)", "Twelve<|eos|>")
    assert all(text.endswith(marks) for text in seen)
    assert len({text[-5:] for text in seen}) >= 4


def test_a_sentence_longer_than_a_block_is_cut_where_the_block_is_full() -> None:
    for block in blocks_of(sample_of("a" * 50), 8, 60):
        lengths = np.diff([*block.block_ends, len(block.tokens)])
        assert lengths.max() <= 8
        assert (lengths[1:-1] == 8).all()


def test_a_piece_larger_than_a_block_is_one() -> None:
    ends = {(*block.block_ends, len(block.tokens)) for block in blocks_of(sample_of("a#b", rows=9), 4, 60)}
    assert {max(ends)} & {(1, 2, 3, 5), (1, 3, 5)}


def test_of_overlong_blocks_the_oldest_are_left_out() -> None:
    sample = sample_of("ab" + STORY, num_prompt=3)
    whole = [block for block in blocks_of(sample, 24) if block.num_rows > 50]
    assert len(whole) > 20
    for block in whole:
        window = cut_window(block, 50, np.random.default_rng(0))
        num_gone = len(block.tokens) - len(window.tokens)
        assert 50 - 24 < window.num_rows <= 50
        assert window.tokens.tolist() == [*block.tokens[:3].tolist(), *block.tokens[3 + num_gone :].tolist()]
        assert window.tokens[window.is_target].tolist() == block.tokens[block.is_target].tolist()
        assert window.block_ends[0] == 3
        assert 3 + num_gone in block.block_ends
        later = [end - num_gone for end in block.block_ends if end > 3 + num_gone]
        assert list(window.block_ends[1:]) == later
        kept = images(block).token >= 3 + num_gone
        assert images(window).token.tolist() == (images(block).token[kept] - num_gone).tolist()


def test_a_block_that_does_not_fit_with_its_prompt_is_named() -> None:
    block = next(block for block in blocks_of(sample_of("ab" + STORY, num_prompt=3), 24) if len(block.block_ends) > 2)
    with pytest.raises(ValueError) as error:
        cut_window(block, 4, np.random.default_rng(0))
    rows = 3 + int(block.is_target.sum()) + 4 * int((images(block).token >= block.block_ends[-1]).sum())
    assert names(str(error.value), KEY, rows, "data.max_sample_rows", 4, "data.block_rows")


# Windows of overlong samples.


@st.composite
def overlong(draw: st.DrawFn) -> tuple[Sample, int]:
    """A sample with a prompt of at most 4 rows, and a limit of at least one row more; image i shows the number i."""
    kinds = draw(st.lists(st.booleans(), min_size=1, max_size=30))
    num_prompt = draw(st.integers(1, 4))
    tokens = np.array(
        [256, *range(num_prompt - 1), *(258 if is_image else i + 100 for i, is_image in enumerate(kinds))]
    )
    image_at = np.flatnonzero(tokens == 258)
    sides = draw(st.lists(st.integers(1, 3), min_size=2 * len(image_at), max_size=2 * len(image_at)))
    grid = np.pad(np.array(sides, dtype=np.int64).reshape(-1, 2), ((0, 0), (1, 0)), constant_values=1)
    number = np.arange(len(image_at), dtype=np.float32)
    sample = Sample(
        key=KEY,
        tokens=tokens,
        is_target=np.arange(len(tokens)) >= num_prompt,
        pieces=(replace(pieces(image_at, grid, elements=1), patches=np.repeat(number, grid.prod(axis=1))[:, None]),),
        is_interleaved=True,
    )
    return sample, draw(st.integers(num_prompt + 1, max(num_prompt + 1, sample.num_rows - 1)))


@given(overlong(), st.integers(0, 2**32 - 1))
def test_a_window_is_the_prompt_and_a_stretch_of_the_targets(case: tuple[Sample, int], seed: int) -> None:
    sample, max_rows = case
    window = cut_window(sample, max_rows, np.random.default_rng(seed))
    assert window.num_rows <= max_rows
    prompt = sample.tokens[~sample.is_target].tolist()
    assert window.tokens[: len(prompt)].tolist() == prompt
    stretch = window.tokens[len(prompt) :].tolist()
    targets = sample.tokens[sample.is_target].tolist()
    assert any(targets[i : i + len(stretch)] == stretch for i in range(len(targets) + 1))
    assert (window.tokens[images(window).token] == 258).all()
    assert len(images(window)) == (window.tokens == 258).sum()
    numbers = np.unique(images(window).patches)
    assert np.array_equal(images(window).patches[:, 0], images(window).per_patch(numbers))
    assert np.array_equal(images(window).grid, images(sample).grid[numbers.astype(int)])


def text_sample(num_targets: int) -> Sample:
    return Sample(
        key=KEY,
        tokens=np.arange(num_targets + 1),
        is_target=np.arange(num_targets + 1) > 0,
        pieces=(cut_pieces([], [], GREY),),
        is_interleaved=True,
    )


def test_windows_of_text_are_full_and_reach_every_token_alike() -> None:
    """Of ten tokens four fit: seven places to start, from the first token to the seventh, so that the last is read."""
    rng = np.random.default_rng(0)
    starts = []
    for _ in range(700):
        window = cut_window(text_sample(10), 5, rng)
        assert len(window.tokens) == 5
        starts.append(int(window.tokens[1]))
    counts = np.bincount(starts, minlength=8)[1:]
    assert counts.sum() == 700
    assert len(counts) == 7
    assert counts.min() > 60


def test_a_prompt_that_fills_the_window_is_named(make_sample: Callable[..., Sample]) -> None:
    sample = make_sample([256, *range(9)], num_prompt=8, key=KEY)
    with pytest.raises(ValueError) as error:
        cut_window(sample, 8, np.random.default_rng(0))
    assert Message(error.value) == (
        f"sample {KEY}: its prompt alone needs 8 rows, data.max_sample_rows is 8; "
        'raise it, or set data.overlong = "drop"'
    )
