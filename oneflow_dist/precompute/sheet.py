"""A contact sheet: pictures as they were cropped, beside what their stored latents decode to."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from oneflow_dist.data.codec import decode_pixels
from oneflow_dist.data.decoding import is_piece
from oneflow_dist.data.index import read_or_write_index
from oneflow_dist.data.latents import decode_array
from oneflow_dist.model.autoencoder import psnr_db
from oneflow_dist.pictures import FAINT, INK, enlarge, grid, stack, text_line, with_margin
from oneflow_dist.precompute.prepare import prepare_sample
from oneflow_dist.precompute.settings import Tools
from oneflow_dist.precompute.shard_work import index_path
from oneflow_dist.precompute.source import open_raw

NUM_PICTURES = 12
COLUMNS = 4
HEIGHT = 160  # of a picture on the sheet


def draw_sheet(folder: Path, shards: list[Path], tools: Tools) -> bytes | None:
    """Pictures spread evenly over the shards, as a PNG; None where there are none."""
    cells = []
    for turn in range(NUM_PICTURES):
        place = turn * len(shards) // NUM_PICTURES
        same = [one for one in range(NUM_PICTURES) if one * len(shards) // NUM_PICTURES == place]
        part = (same.index(turn) + 0.5) / len(same)
        pair = _read_pair(folder / shards[place].name, shards[place], part, tools)
        if pair is not None:
            cells.append(_draw_cell(*pair))
    if not cells:
        return None
    options, autoencoder = tools.options, tools.autoencoder
    title = (
        f"{autoencoder.name}: {autoencoder.channels} channels, 1/{autoencoder.downsample} of the size, {options.dtype}"
    )
    head = stack([text_line(title, 24, INK), text_line("left: as cropped   right: decoded latent", 16, FAINT)], gap=4)
    page = with_margin(stack([head, grid(cells, COLUMNS, gap=24)], gap=24), 32)
    buffer = io.BytesIO()
    page.save(buffer, format="PNG")
    return buffer.getvalue()


def _read_pair(latents: Path, shard: Path, part: float, tools: Tools) -> tuple[np.ndarray, np.ndarray] | None:
    """The picture at `part` of a shard and its reconstruction, both [3, H, W] in [-1, 1]."""
    index = read_or_write_index(latents, index_path(latents), str(latents))
    found = [
        (index.key(number), extension, offset, size)
        for number in range(len(index))
        for extension, offset, size in index.members(number)
        if is_piece(extension) and extension.endswith("npy")
    ]
    if not found:
        return None
    key, extension, offset, size = found[int(part * len(found))]
    with latents.open("rb") as file:
        file.seek(offset)
        mean = decode_array(file.read(size), f"{latents}, {key}.{extension}")[0].astype(np.float32)
    raw = open_raw(shard)
    with raw.file:
        sample = next(sample for sample in raw.samples if sample.key == key)
        pictures = prepare_sample(key, raw.read(sample), tools.preparation()).pictures
    original = next(p.pixels for p in pictures if p.name == extension.removesuffix("npy").removesuffix("."))
    decoded = tools.autoencoder.decode(torch.from_numpy(mean)[None])[0].numpy()
    return original.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1.0, decoded


def _draw_cell(original: np.ndarray, decoded: np.ndarray) -> Image.Image:
    pictures = [enlarge(decode_pixels(image), HEIGHT) for image in (original, decoded)]
    psnr = psnr_db(*(torch.from_numpy(image)[None] for image in (decoded, original))).item()
    caption = "identical" if np.array_equal(original, decoded) else f"{psnr:.1f} dB"
    return stack([grid(pictures, columns=2, gap=6), text_line(caption, 16, FAINT)], gap=6, align="centre")
