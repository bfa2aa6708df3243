"""What a model wrote, as a picture: documents with their pieces in the text."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image, ImageDraw, ImageFont

from oneflow_dist.canvas import Canvas, blank_canvas, parse_prompt
from oneflow_dist.config import Config
from oneflow_dist.data.codec import decode_pixels
from oneflow_dist.data.identity import check_decoder
from oneflow_dist.data.sound import RANGE
from oneflow_dist.data.tokenizer import Tokenizer, load_tokenizer
from oneflow_dist.files import naming
from oneflow_dist.modality import LATENTS, ModalityConfig
from oneflow_dist.model.autoencoder import Autoencoder, load_autoencoder
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.runtime import is_main
from oneflow_dist.sampler import generate

INK, FAINT, PAPER = "#1c1c28", "#8a8a99", "#ffffff"
DOCUMENTS_PER_PROMPT = 4
PAGE_WIDTH = 960  # pixels, without margins

Box = tuple[str, str] | Image.Image  # a word and its colour, or a picture


def draw_progress(model: OneFlow, config: Config, step: int) -> Path:
    """Generate from the fixed prompts of [sampling] and draw the documents; the noise is the same at every step.

    All ranks generate the same, since a sharded model needs all of them; rank 0 draws.
    """
    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    prompts = [prompt for prompt in config.sampling.prompts for _ in range(DOCUMENTS_PER_PROMPT)]
    canvases = [
        blank_canvas(parse_prompt(prompt, tokenizer), tokenizer, config.modality, config.run.seed, index)
        for index, prompt in enumerate(prompts)
    ]
    generate(model, canvases, config, tokenizer)
    path = Path(config.run.folder) / "samples" / f"step-{step:08d}.png"
    if not is_main():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    documents = [draw_document(canvas, tokenizer) for canvas in canvases]
    page = stack([text_line(f"step {step}", 18), *documents], gap=12)
    with naming(path):
        with_margin(page, 24).save(path)
    return path


def draw_document(canvas: Canvas, tokenizer: Tokenizer, width: int = PAGE_WIDTH, image_height: int = 64) -> Image.Image:
    """Text and pieces of a document in reading order, wrapped at `width` pixels, on a page as wide as what it shows."""
    pictures = {kind: draw_pieces(making.latents(), making.modality) for kind, making in canvas.making.items()}
    boxes: list[Box] = []
    for part in canvas.parts(tokenizer):
        if isinstance(part, str):
            boxes += [(word, INK) for word in part.split()]
        else:
            kind, number = part
            boxes.append(enlarge(pictures[kind][number], image_height))
    return flow(boxes or [("(empty)", INK)], width, image_height)


def draw_page(canvases: list[Canvas], tokenizer: Tokenizer) -> Image.Image:
    """Documents with their numbers, short ones beside each other; the page is no larger than what it shows."""
    documents = [draw_numbered(canvas, index, tokenizer) for index, canvas in enumerate(canvases)]
    return with_margin(beside(documents), 24)


def draw_numbered(canvas: Canvas, index: int, tokenizer: Tokenizer, width: int = PAGE_WIDTH) -> Image.Image:
    """A document below its number."""
    return stack([text_line(f"{index:04d}", 13, FAINT), draw_document(canvas, tokenizer, width)], gap=4)


def beside(documents: list[Image.Image], width: int = PAGE_WIDTH) -> Image.Image:
    """As many documents beside each other as fit in `width` pixels."""
    gap, widest = 24, max(document.width for document in documents)
    columns = min(len(documents), max(1, (width + gap) // (widest + gap)))
    return grid(documents, columns, gap, align="left")


def flow(boxes: list[Box], width: int, image_height: int) -> Image.Image:
    """Words and pictures, from left to right, wrapped at `width` pixels; the page is no wider than they are."""
    font = ImageFont.load_default(18)
    has_image = any(isinstance(box, Image.Image) for box in boxes)
    line_height = image_height if has_image else 24
    placed, x, y, right = [], 0, 0, 1
    for box in boxes:
        box_width = box.width if isinstance(box, Image.Image) else math.ceil(font.getlength(box[0]))
        if x > 0 and x + box_width > width:
            x, y = 0, y + line_height + 8
        placed.append((box, x, y))
        right = max(right, x + box_width)
        x += box_width + 8
    page = Image.new("RGB", (min(right, width), y + line_height), PAPER)
    draw = ImageDraw.Draw(page)
    for box, left, top in placed:
        if isinstance(box, Image.Image):
            page.paste(box, (left, top))
        else:
            draw.text((left, top + line_height // 2), box[0], fill=box[1], font=font, anchor="lm")
    return page


def draw_pieces(latents: list[Float32[np.ndarray, "C *_"]], modality: ModalityConfig) -> list[Image.Image]:
    """Pieces of a modality as pictures: frames side by side, bands of a sound with the lowest at the bottom.

    Raises:
        ValueError: no such autoencoder, or one of other latents.
    """
    if modality.has_folder and modality.is_target and modality.dimensions == 2:
        return [_decode_picture(latent, modality) for latent in latents]
    if modality.dimensions == 3:
        apart = [np.pad(latent, ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=1.0) for latent in latents]
        return [decode_pixels(np.concatenate(list(latent.swapaxes(0, 1)), axis=-1)) for latent in apart]
    if modality.dimensions < 2:
        ends = (-1.0, RANGE - 1.0) if modality.has_sound else (-1.0, 1.0)
        bands = [np.interp(latent.reshape(1, len(latent), -1), ends, (-1.0, 1.0)) for latent in latents]
        return [decode_pixels(each[:, ::-1].astype(np.float32)) for each in bands]
    return [decode_pixels(latent) for latent in latents]


def _decode_picture(latent: Float32[np.ndarray, "C h w"], modality: ModalityConfig) -> Image.Image:
    decoder = decoder_of(modality)
    raw = torch.from_numpy(latent) / decoder.scaling_factor + decoder.shift_factor
    return decode_pixels(decoder.decode(raw[None])[0].numpy())


def check_decoders(config: Config, data: Mapping[str, Any]) -> None:
    """Compare what turns latents into pictures with what made them; `data` as `describe_data` gives it.

    Raises:
        ValueError: no such autoencoder, or another.
    """
    for kind, modality in config.modality.items():
        if modality.is_target and modality.dimensions == 2 and modality.codec != LATENTS:
            check_decoder(data, kind, modality.codec, decoder_of(modality).describe())


def decoder_of(modality: ModalityConfig) -> Autoencoder:
    """The autoencoder that is a modality's codec, or that of pixels, which may have any number of channels.

    Raises:
        ValueError: no such autoencoder, or one of other latents.
    """
    decoder = load_decoder(modality.codec)
    if modality.has_folder and decoder.channels != modality.channels:
        raise ValueError(
            f"{modality.codec}: an autoencoder with latents of {decoder.channels} channels, but its modality has "
            f"channels = {modality.channels}; name the one that encoded the data as the codec"
        )
    return decoder


@functools.cache
def load_decoder(folder: str) -> Autoencoder:
    """The autoencoder in a folder, or "pixels", on this process's device."""
    return load_autoencoder(folder, "cuda" if torch.cuda.is_available() else "cpu", torch.float32)


def enlarge(picture: Image.Image, height: int) -> Image.Image:
    """A picture at another height: square pixels stay crisp when a small one grows."""
    width = max(1, round(picture.width * height / picture.height))
    method = Image.Resampling.NEAREST if picture.height < 32 else Image.Resampling.LANCZOS
    return picture.convert("RGB").resize((width, height), method)


def text_line(text: str, size: int, color: str = INK) -> Image.Image:
    """One line of text, as high as its font."""
    font = ImageFont.load_default(size)
    page = Image.new("RGB", (int(font.getlength(text)) + 2, round(1.35 * size)), PAPER)
    ImageDraw.Draw(page).text((0, page.height // 2), text, fill=color, font=font, anchor="lm")
    return page


def stack(pictures: list[Image.Image], gap: int, align: Literal["left", "centre"] = "left") -> Image.Image:
    """Pictures one below the other."""
    height = sum(p.height for p in pictures) + gap * (len(pictures) - 1)
    page = Image.new("RGB", (max(p.width for p in pictures), height), PAPER)
    top = 0
    for picture in pictures:
        page.paste(picture, ((page.width - picture.width) // 2 if align == "centre" else 0, top))
        top += picture.height + gap
    return page


def grid(
    pictures: list[Image.Image], columns: int, gap: int, align: Literal["left", "centre"] = "centre"
) -> Image.Image:
    """Pictures in rows of `columns`, each in a cell as wide as the widest, in a row as high as its highest."""
    cell = max(picture.width for picture in pictures) + gap
    rows = [pictures[first : first + columns] for first in range(0, len(pictures), columns)]
    heights = [max(picture.height for picture in row) for row in rows]
    page = Image.new("RGB", (columns * cell - gap, sum(heights) + gap * (len(rows) - 1)), PAPER)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            spare = (cell - gap - picture.width) // 2 if align == "centre" else 0
            page.paste(picture, (column * cell + spare, top))
        top += height + gap
    return page


def with_margin(picture: Image.Image, margin: int) -> Image.Image:
    """The picture on a larger page."""
    page = Image.new("RGB", (picture.width + 2 * margin, picture.height + 2 * margin), PAPER)
    page.paste(picture, (margin, margin))
    return page
