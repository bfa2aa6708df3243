"""What a packed batch holds: a digest for machines, a picture for people."""

from __future__ import annotations

import dataclasses
import hashlib
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

MISSING = "#c0392b"
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

    Closed text in grey, open text in black, missing text in red at its slot; each piece as it is at its time and, where
    it is to be made, what it is to become.
    """
    legend: list[Box] = [("given", FAINT), ("there", INK), ("missing", MISSING), ("| piece now, then complete", FAINT)]
    lines = [flow(legend, WIDTH, IMAGE_HEIGHT)]
    for number, key in enumerate(batch.keys[:num_samples]):
        lines.append(text_line(f"{key}    text time {batch.text_time[number]:.2f}", 14, FAINT))
        lines.append(flow(_boxes(batch, number, tokenizer, config), WIDTH, IMAGE_HEIGHT))
    if len(batch.keys) > num_samples:
        lines.append(text_line(f"and {len(batch.keys) - num_samples} more", 14, FAINT))
    return with_margin(stack(lines, gap=10), 24)


def _boxes(batch: PackedBatch, number: int, tokenizer: Tokenizer, config: Config) -> list[Box]:
    """One sample of a pack, word by word and piece by piece."""
    slots = np.flatnonzero(batch.token_sequence[: batch.counts.text_tokens].numpy() == number)
    bag_slot = batch.bag_slot[: batch.counts.bag_tokens].numpy()
    words: list[tuple[str, list[int]]] = []  # colour, tokens
    boxes: list[Box] = []
    kinds = list(config.modality)
    kind_of = {token: kind for kind, token in tokenizer.piece_of.items()}

    def write() -> None:
        for color, tokens in words:
            boxes.extend((word, color) for word in tokenizer.decode(tokens).split())
        words.clear()

    for place, slot in enumerate(slots.tolist()):
        token = int(batch.tokens[slot])
        is_open = place > 0 and bool((batch.slot_weight[slot - 1 : slot + 1] > 0).all())  # on both sides: a target
        kind = kind_of.get(token)
        if kind is not None:
            write()
            boxes += _piece_boxes(
                batch.pieces[kinds.index(kind)], int(batch.token_row[slot]) + 1, config.modality[kind]
            )
        elif place > 0:  # BOS is not shown
            color = INK if is_open else FAINT
            if not words or words[-1][0] != color:
                words.append((color, []))
            words[-1][1].append(token)
        missing = batch.bag_tokens[: batch.counts.bag_tokens][bag_slot == slot].tolist()
        if missing:
            words.append((MISSING, missing))
    write()
    return boxes or [("(nothing)", FAINT)]


def _piece_boxes(pieces: PackedPieces, row: int, modality: ModalityConfig) -> list[Box]:
    """The piece whose patches start at a row, as it stands, its time, and what it becomes if it is scored."""
    number = int(pieces.patch_piece[pieces.patch_row == row])
    own = pieces.patch_piece == number
    time, grid = float(pieces.time[number]), pieces.grid[number].tolist()
    noisy, velocity = pieces.patches[own].numpy(), pieces.velocity[own].numpy()
    is_scored = bool((pieces.patch_weight[own] > 0).all())
    stages = [noisy, noisy + (1.0 - time) * velocity] if is_scored else [noisy]
    latents = [to_latent(patches, grid, modality) for patches in stages]
    if modality.understanding == "live":  # patches of the picture itself
        modality = dataclasses.replace(modality, channels=3, codec=PIXELS)
    return [(f"t={time:.2f}", FAINT), *(enlarge(picture, IMAGE_HEIGHT) for picture in draw_pieces(latents, modality))]
