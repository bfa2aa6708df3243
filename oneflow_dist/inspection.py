"""What a packed batch holds: a digest for machines, a picture for people."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from oneflow_dist.config import Config
from oneflow_dist.containers import PackedBatch, PackedPieces
from oneflow_dist.data.codec import to_latent
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.modality import PIXELS, ModalityConfig
from oneflow_dist.pictures import FAINT, INK, Box, draw_pieces, enlarge, flow, stack, text_line, with_margin

# What a token is to a sample, and its colour.
COLORS = {"given": FAINT, "role": "#1f5fa8", "there": INK, "missing": "#c0392b"}
WIDTH, IMAGE_HEIGHT = 1200, 72


def digest(packs: list[PackedBatch]) -> str:
    """The sha256 of every array of the packs: tokens, bags, slots, pieces, times, noise and layout."""
    sha256 = hashlib.sha256()
    for pack in packs:
        for field in dataclasses.fields(pack):
            sha256.update(field.name.encode())
            _add(sha256, getattr(pack, field.name))
    return sha256.hexdigest()


def _add(sha256: Any, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        sha256.update(value.numpy().tobytes())
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            _add(sha256, getattr(value, field.name))
    elif isinstance(value, tuple):
        for part in value:
            _add(sha256, part)
    else:
        sha256.update(repr(value).encode())


def draw_pack(batch: PackedBatch, tokenizer: Tokenizer, config: Config, num_samples: int = 10) -> Image.Image:
    """The first samples of a pack as training sees them.

    Given text in grey, the tokens of roles in blue, targets that are there in black, missing ones in red at their slot;
    each piece as it is at its time and, where it is to be made, what it is to become.
    """
    legend: list[Box] = [*COLORS.items()]
    lines = [flow([*legend, ("| piece now, then complete", FAINT)], WIDTH, IMAGE_HEIGHT)]
    for number, key in enumerate(batch.keys[:num_samples]):
        lines.append(text_line(f"{key}    text time {batch.text_time[number]:.2f}", 14, FAINT))
        lines.append(flow(_boxes(batch, number, tokenizer, config), WIDTH, IMAGE_HEIGHT))
    if len(batch.keys) > num_samples:
        lines.append(text_line(f"and {len(batch.keys) - num_samples} more", 14, FAINT))
    return with_margin(stack(lines, gap=10), 24)


def spell_pack(batch: PackedBatch, tokenizer: Tokenizer, config: Config, num_samples: int = 10) -> list[str]:
    """The first samples of a pack, a line each: what is given as it is, [targets that are there], {missing ones}."""
    marks = {"there": "[]", "missing": "{}"}
    lines = []
    for number, key in enumerate(batch.keys[:num_samples]):
        spelled = [
            tokenizer.decode(tokens).join(marks.get(what, ("", "")))
            for what, tokens, _ in _walk(batch, number, tokenizer, config)
        ]
        lines.append(f"{key}: {''.join(spelled)!r}")
    return lines


def _boxes(batch: PackedBatch, number: int, tokenizer: Tokenizer, config: Config) -> list[Box]:
    """One sample of a pack, word by word and piece by piece."""
    boxes: list[Box] = []
    for what, tokens, pieces in _walk(batch, number, tokenizer, config):
        if pieces is not None:
            boxes += _piece_boxes(*pieces)
        else:
            boxes += [(word, COLORS[what]) for word in tokenizer.decode(tokens).split()]
    return boxes or [("(nothing)", FAINT)]


Shown = tuple[PackedPieces, int, ModalityConfig]  # those of a modality, the row where one begins


def _walk(
    batch: PackedBatch, number: int, tokenizer: Tokenizer, config: Config
) -> Iterator[tuple[str, list[int], Shown | None]]:
    """One sample of a pack in reading order, BOS left out: what stands there (a key of COLORS), and its tokens."""
    slots = np.flatnonzero(batch.token_sequence[: batch.counts.text_tokens].numpy() == number)
    bag_slot = batch.bag_slot[: batch.counts.bag_tokens].numpy()
    kinds = list(config.modality)
    kind_of = {token: kind for kind, token in tokenizer.piece_of.items()}
    found: list[tuple[str, int, Shown | None]] = []
    for place, slot in enumerate(slots.tolist()):
        token = int(batch.tokens[slot])
        is_open = place > 0 and bool((batch.slot_weight[slot - 1 : slot + 1] > 0).all())  # on both sides: a target
        if token in kind_of:
            kind = kind_of[token]
            shown = batch.pieces[kinds.index(kind)], int(batch.token_row[slot]) + 1, config.modality[kind]
            found.append(("there" if is_open or _is_scored(*shown[:2]) else "given", token, shown))
        elif place > 0:
            is_role = token in tokenizer.role_of.values()
            found.append(("role" if is_role else "there" if is_open else "given", token, None))
        missing = batch.bag_tokens[: batch.counts.bag_tokens][bag_slot == slot].tolist()
        found += [("missing", token, None) for token in missing]
    for _, run in itertools.groupby(found, key=lambda each: (each[0], each[2] and each[2][1])):
        whats, tokens, pieces = zip(*run, strict=True)
        yield whats[0], list(tokens), pieces[0]


def _is_scored(pieces: PackedPieces, row: int) -> bool:
    """Whether the velocity of the piece whose patches start at a row is."""
    own = pieces.patch_piece == int(pieces.patch_piece[pieces.patch_row == row])
    return bool((pieces.patch_weight[own] > 0).all())


def _piece_boxes(pieces: PackedPieces, row: int, modality: ModalityConfig) -> list[Box]:
    """The piece whose patches start at a row, as it stands, its time, and what it becomes if it is scored."""
    number = int(pieces.patch_piece[pieces.patch_row == row])
    own = pieces.patch_piece == number
    time, grid = float(pieces.time[number]), pieces.grid[number].tolist()
    noisy, velocity = pieces.patches[own].numpy(), pieces.velocity[own].numpy()
    stages = [noisy, noisy + (1.0 - time) * velocity] if _is_scored(pieces, row) else [noisy]
    latents = [to_latent(patches, grid, modality) for patches in stages]
    if modality.understanding == "live":  # patches of the picture itself
        modality = dataclasses.replace(modality, channels=3, codec=PIXELS)
    return [(f"t={time:.2f}", FAINT), *(enlarge(picture, IMAGE_HEIGHT) for picture in draw_pieces(latents, modality))]
