"""What a packed batch holds: a digest for machines, a picture for people."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import torch
from PIL import Image

from oneflow_dist.config import Config
from oneflow_dist.containers import PackedBatch
from oneflow_dist.data.codec import to_latent
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.pictures import FAINT, INK, Box, decode_pictures, enlarge, flow, stack, text_line, with_margin

MISSING = "#c0392b"
WIDTH, IMAGE_HEIGHT = 1200, 72


def digest(packs: list[PackedBatch]) -> str:
    """The sha256 of every array of the packs: tokens, bags, slots, images, times, noise and layout."""
    sha256 = hashlib.sha256()
    for pack in packs:
        for field in dataclasses.fields(pack):
            value = getattr(pack, field.name)
            sha256.update(field.name.encode())
            sha256.update(value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode())
    return sha256.hexdigest()


def draw_pack(batch: PackedBatch, tokenizer: Tokenizer, config: Config, num_samples: int = 10) -> Image.Image:
    """The first samples of a pack as training sees them.

    Closed text in grey, open text in black, missing text in red at its slot; each image as it is at its time and, where
    it is to be painted, what it is to become.
    """
    legend: list[Box] = [("given", FAINT), ("there", INK), ("missing", MISSING), ("| image now, then complete", FAINT)]
    lines = [flow(legend, WIDTH, IMAGE_HEIGHT)]
    for number, key in enumerate(batch.keys[:num_samples]):
        lines.append(text_line(f"{key}    text time {batch.text_time[number]:.2f}", 14, FAINT))
        lines.append(flow(_boxes(batch, number, tokenizer, config), WIDTH, IMAGE_HEIGHT))
    if len(batch.keys) > num_samples:
        lines.append(text_line(f"and {len(batch.keys) - num_samples} more", 14, FAINT))
    return with_margin(stack(lines, gap=10), 24)


def _boxes(batch: PackedBatch, number: int, tokenizer: Tokenizer, config: Config) -> list[Box]:
    """One sample of a pack, word by word and image by image."""
    slots = np.flatnonzero(batch.token_sequence[: batch.counts.text_tokens].numpy() == number)
    bag_slot = batch.bag_slot[: batch.counts.bag_tokens].numpy()
    pieces: list[tuple[str, list[int]]] = []  # colour, tokens
    boxes: list[Box] = []

    def write() -> None:
        for color, tokens in pieces:
            boxes.extend((word, color) for word in tokenizer.decode(tokens).split())
        pieces.clear()

    for place, slot in enumerate(slots.tolist()):
        token = int(batch.tokens[slot])
        is_open = place > 0 and bool((batch.slot_weight[slot - 1 : slot + 1] > 0).all())  # on both sides: a target
        if token == tokenizer.image:
            write()
            boxes += _image_boxes(batch, int(batch.row_image[int(batch.token_row[slot]) + 1]), config)
        elif place > 0:  # BOS is not shown
            color = INK if is_open else FAINT
            if not pieces or pieces[-1][0] != color:
                pieces.append((color, []))
            pieces[-1][1].append(token)
        missing = batch.bag_tokens[: batch.counts.bag_tokens][bag_slot == slot].tolist()
        if missing:
            pieces.append((MISSING, missing))
    write()
    return boxes or [("(nothing)", FAINT)]


def _image_boxes(batch: PackedBatch, number: int, config: Config) -> list[Box]:
    """An image as it stands, its time, and what it becomes if it is scored."""
    own = (batch.row_image[batch.patch_row] == number) & (batch.patch_image == number)
    place = batch.position[batch.patch_row[own]]
    rows, columns = (int(side) for side in (place[:, 1:].amax(0) - place[:, 1:].amin(0) + 1))
    time = float(batch.image_time[number])
    noisy, velocity = batch.patches[own].numpy(), batch.velocity[own].numpy()
    is_scored = bool((batch.patch_weight[own] > 0).all())
    stages = [noisy, noisy + (1.0 - time) * velocity] if is_scored else [noisy]
    latents = [to_latent(patches, (rows, columns), config.image) for patches in stages]
    pictures = [enlarge(picture, IMAGE_HEIGHT) for picture in decode_pictures(latents, config.sampling.autoencoder)]
    return [(f"t={time:.2f}", FAINT), *pictures]
