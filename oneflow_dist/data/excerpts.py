"""Parts of a sample: holes in it, one block of it, a window of one that is too long."""

# Shapes: n tokens, c places to cut.

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Int64

from oneflow_dist.containers import Sample
from oneflow_dist.data.tokenizer import Tokenizer

MAX_HOLES = 3  # in a sample of the task infill
SENTENCE_END = re.compile(rb"""[.!?]["')\]]*\s*\Z|\n""")  # in a token


def leave_holes(sample: Sample, rng: np.random.Generator) -> Sample:
    """Up to three stretches of the targets as targets, the rest as prompt.

    Each is anywhere, of one token to all, one order of magnitude as likely as another. Pieces among them are inserted
    like tokens, or there from the start, to be made anew: one as often as the other.
    """
    targets, is_target = np.flatnonzero(sample.is_target), np.zeros_like(sample.is_target)
    for _ in range(rng.integers(1, MAX_HOLES + 1)):
        length = int(len(targets) ** rng.random())
        first = int(rng.integers(len(targets) - length + 1))
        is_target[targets[first : first + length]] = True
    is_inserted = rng.random() < 0.5
    return replace(sample, is_target=is_target, is_interleaved=bool(is_inserted and _has_piece(sample, is_target)))


def take_block(sample: Sample, most_rows: int, tokenizer: Tokenizer, rng: np.random.Generator) -> Sample:
    """One of the blocks of a sample, see `cut_blocks`."""
    whole, ends = _with_ends(sample, most_rows, tokenizer, rng)
    return _block(whole, ends, int(rng.integers(1, len(ends))))


def cut_blocks(sample: Sample, most_rows: int, tokenizer: Tokenizer, rng: np.random.Generator) -> list[Sample]:
    """Each block of a sample as target, with all blocks before it as prompt and nothing of what follows.

    A block is as many whole sentences and pieces as `most_rows` hold, and `<|eos|>` ends the last one. The first one is
    shorter at random, so that in another pass blocks begin elsewhere. A sentence that is longer by itself is cut.
    """
    whole, ends = _with_ends(sample, most_rows, tokenizer, rng)
    return [_block(whole, ends, number) for number in range(1, len(ends))]


def _with_ends(
    sample: Sample, most_rows: int, tokenizer: Tokenizer, rng: np.random.Generator
) -> tuple[Sample, list[int]]:
    """The sample with `<|eos|>`, and after how many of its tokens the prompt and each block end."""
    whole = replace(sample, tokens=np.append(sample.tokens, tokenizer.eos), is_target=np.append(sample.is_target, True))
    return whole, _block_ends(whole, most_rows, tokenizer, int(rng.integers(1, most_rows + 1)))


def _block(sample: Sample, ends: list[int], number: int) -> Sample:
    first, end = ends[number - 1], ends[number]
    is_target = np.arange(end) >= first
    block = replace(
        sample,
        tokens=sample.tokens[:end],
        is_target=is_target,
        pieces=tuple(of_kind.select(of_kind.token < end) for of_kind in sample.pieces),
        block_ends=tuple(ends[:number]),
    )
    return replace(block, is_interleaved=_has_piece(block, is_target))


def cut_window(sample: Sample, max_rows: int, rng: np.random.Generator) -> Sample:
    """A random stretch of an overlong sample from its first target on, after its prompt, of at most `max_rows` rows.

    Of the blocks before one, the oldest are left out instead, as few as it takes.
    """
    rows = _rows_of_tokens(sample)
    if len(sample.block_ends) > 1:
        return _leave_out_blocks(sample, rows, max_rows)
    targets = np.arange(sample.front, len(rows))
    room = max_rows - int(rows[: sample.front].sum())
    if room < 1:
        raise ValueError(
            f"sample {sample.key}: its prompt alone needs {max_rows - room} rows, data.max_sample_rows is {max_rows}; "
            'raise it, or set data.overlong = "drop"'
        )
    rows_to_end = np.cumsum(rows[targets][::-1])[::-1]
    num_starts = int((rows_to_end > room).sum()) + 1  # the last one reaches the end, later ones leave room unused
    start = int(rng.integers(num_starts))
    fits = np.cumsum(rows[targets][start:]) <= room
    is_kept = np.arange(len(rows)) < sample.front
    is_kept[targets[start:][fits]] = True
    return _keep(sample, is_kept)


def _leave_out_blocks(sample: Sample, rows: Int64[np.ndarray, "n"], max_rows: int) -> Sample:
    front, token = sample.block_ends[0], np.arange(len(rows))
    needed = np.array([rows[(token < front) | (token >= end)].sum() for end in sample.block_ends])
    if needed[-1] > max_rows:
        raise ValueError(
            f"sample {sample.key}: its prompt and a block need {needed[-1]} rows, data.max_sample_rows is {max_rows}; "
            "raise it, or lower data.block_rows"
        )
    number = int((needed > max_rows).sum())
    first = sample.block_ends[number]
    ends = tuple(end - first + front for end in sample.block_ends[number:])
    return replace(_keep(sample, (token < front) | (token >= first)), block_ends=ends)


def _keep(sample: Sample, is_kept: Bool[np.ndarray, "n"]) -> Sample:
    """Some of its tokens, with their pieces."""
    place = is_kept.cumsum() - 1
    kept = [pieces.select(is_kept[pieces.token]) for pieces in sample.pieces]
    return replace(
        sample,
        tokens=sample.tokens[is_kept],
        is_target=sample.is_target[is_kept],
        pieces=tuple(replace(pieces, token=place[pieces.token]) for pieces in kept),
    )


def _block_ends(sample: Sample, most_rows: int, tokenizer: Tokenizer, first_rows: int) -> list[int]:
    """After how many tokens the prompt and each block end; the first block has at most `first_rows` if it can."""
    rows, cuts = np.cumsum(_rows_of_tokens(sample)), _cut_points(sample, tokenizer)
    ends, budget = [sample.front], first_rows
    while ends[-1] < len(rows):
        before = rows[ends[-1] - 1]
        within, most = np.searchsorted(rows, [before + budget, before + most_rows], side="right")
        after = cuts[cuts > ends[-1]]
        fitting = after[after <= within]
        ends.append(int(fitting[-1] if len(fitting) else max(ends[-1] + 1, min(after[0], most))))
        budget = most_rows
    return ends


def _cut_points(sample: Sample, tokenizer: Tokenizer) -> Int64[np.ndarray, "c"]:
    """After how many tokens a block may end: after a piece, after a sentence, and at the end."""
    texts = tokenizer.encoding.decode_tokens_bytes(sample.tokens.tolist())
    can_end = np.array([SENTENCE_END.search(text) is not None for text in texts])
    can_follow = np.array([text[:1].isspace() for text in texts])
    for pieces in sample.pieces:
        can_end[pieces.token] = can_follow[pieces.token] = True
        can_follow[pieces.token[pieces.token + 1 < len(texts)] + 1] = True
    can_end[-1] = can_follow[-1] = True
    return np.flatnonzero(can_end & np.append(can_follow[1:], True)) + 1


def _rows_of_tokens(sample: Sample) -> Int64[np.ndarray, "n"]:
    """Trunk rows of each token, with its patches."""
    rows = np.ones(len(sample.tokens), dtype=np.int64)
    for pieces in sample.pieces:
        rows[pieces.token] += pieces.num_patches
    return rows


def _has_piece(sample: Sample, is_target: Bool[np.ndarray, "n"]) -> bool:
    return any(bool(is_target[pieces.token].any()) for pieces in sample.pieces)
