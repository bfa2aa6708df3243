"""What a model wrote, as a picture: documents with their images in the text."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image, ImageDraw, ImageFont

from oneflow_dist.canvas import Canvas, blank_canvas, parse_prompt
from oneflow_dist.config import Config
from oneflow_dist.data.codec import decode_pixels, encode_pixels
from oneflow_dist.data.tokenizer import Tokenizer, load_tokenizer
from oneflow_dist.model.autoencoder import PIXELS, Autoencoder, load_autoencoder
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.runtime import is_main
from oneflow_dist.sampler import SamplerSettings, generate

INK, FAINT, PAPER = "#1c1c28", "#8a8a99", "#ffffff"
DOCUMENTS_PER_PROMPT = 4

Box = tuple[str, str] | Image.Image  # a word and its colour, or a picture


def draw_progress(model: OneFlow, config: Config, step: int) -> Path:
    """Generate from the fixed prompts of [sampling] and draw the documents; the noise is the same at every step.

    All ranks generate the same, since a sharded model needs all of them; rank 0 draws.
    """
    tokenizer = load_tokenizer(config.data.tokenizer)
    prompts = [prompt for prompt in config.sampling.prompts for _ in range(DOCUMENTS_PER_PROMPT)]
    canvases = [
        blank_canvas(parse_prompt(prompt, tokenizer), tokenizer, config.image, config.run.seed, index)
        for index, prompt in enumerate(prompts)
    ]
    generate(model, canvases, SamplerSettings.from_config(config.sampling), config, tokenizer)
    path = Path(config.run.folder) / "samples" / f"step-{step:08d}.png"
    if not is_main():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    documents = [draw_document(canvas, tokenizer, config.sampling.autoencoder) for canvas in canvases]
    page = stack([text_line(f"step {step}", 18), *documents], gap=12)
    with_margin(page, 24).save(path)
    return path


def draw_document(
    canvas: Canvas, tokenizer: Tokenizer, autoencoder: str = PIXELS, width: int = 960, image_height: int = 64
) -> Image.Image:
    """Text and images of a document in reading order, wrapped at `width` pixels.

    Args:
        autoencoder: turns latents into pictures, as `sampling.autoencoder`.
    """
    pictures = decode_pictures(canvas.latents(), autoencoder)
    boxes: list[Box] = []
    for part in canvas.parts(tokenizer):
        if isinstance(part, str):
            boxes += [(word, INK) for word in part.split()]
        else:
            boxes.append(enlarge(pictures[part], image_height))
    return flow(boxes or [("(empty)", INK)], width, image_height)


def flow(boxes: list[Box], width: int, image_height: int) -> Image.Image:
    """Words and pictures, from left to right, wrapped at `width` pixels."""
    font = ImageFont.load_default(18)
    has_image = any(isinstance(box, Image.Image) for box in boxes)
    line_height = image_height if has_image else 24
    placed, x, y = [], 0, 0
    for box in boxes:
        box_width = box.width if isinstance(box, Image.Image) else int(font.getlength(box[0]))
        if x > 0 and x + box_width > width:
            x, y = 0, y + line_height + 8
        placed.append((box, x, y))
        x += box_width + 8
    page = Image.new("RGB", (width, y + line_height), PAPER)
    draw = ImageDraw.Draw(page)
    for box, left, top in placed:
        if isinstance(box, Image.Image):
            page.paste(box, (left, top))
        else:
            draw.text((left, top + line_height // 2), box[0], fill=box[1], font=font, anchor="lm")
    return page


def decode_pictures(latents: list[Float32[np.ndarray, "C _ _"]], autoencoder: str) -> list[Image.Image]:
    """Latents as pictures, by "pixels" or by the autoencoder in a folder.

    Raises:
        ValueError: no such autoencoder, or one of other latents.
    """
    if autoencoder == PIXELS:
        return [decode_pixels(latent) for latent in latents]
    decoder = load_decoder(autoencoder)
    pictures = []
    for latent in latents:
        if len(latent) != decoder.channels:
            raise ValueError(
                f"sampling.autoencoder: {autoencoder} has latents of {decoder.channels} channels, but image.channels "
                f"is {len(latent)}; name the one that encoded the data"
            )
        raw = torch.from_numpy(latent) / decoder.scaling_factor + decoder.shift_factor
        pictures.append(decode_pixels(decoder.decode(raw[None])[0].numpy()))
    return pictures


def encode_picture(data: bytes, config: Config, name: str) -> Float32[np.ndarray, "C _ _"]:
    """A picture as the latent that the model sees, by `sampling.autoencoder`.

    Raises:
        ValueError: not a readable picture, or not of a size that patches fill.
    """
    if config.sampling.autoencoder == PIXELS:
        return encode_pixels(data, config.image, name)
    encoder = load_decoder(config.sampling.autoencoder)
    step = encoder.downsample * config.image.patch_size
    pixels = encode_pixels(data, dataclasses.replace(config.image, channels=3, patch_size=step), name)
    mean, _ = encoder.encode(torch.from_numpy(pixels)[None])
    return ((mean[0] - encoder.shift_factor) * encoder.scaling_factor).numpy()


@functools.cache
def load_decoder(folder: str) -> Autoencoder:
    """The autoencoder of `sampling.autoencoder`, on this process's device."""
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


def grid(pictures: list[Image.Image], columns: int, gap: int) -> Image.Image:
    """Pictures in rows of `columns`, each centred in a cell of the largest one's size."""
    width, height = (int(np.max([getattr(p, side) for p in pictures])) + gap for side in ("width", "height"))
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * width - gap, rows * height - gap), PAPER)
    for number, picture in enumerate(pictures):
        left = (number % columns) * width + (width - gap - picture.width) // 2
        page.paste(picture, (left, (number // columns) * height))
    return page


def with_margin(picture: Image.Image, margin: int) -> Image.Image:
    """The picture on a larger page."""
    page = Image.new("RGB", (picture.width + 2 * margin, picture.height + 2 * margin), PAPER)
    page.paste(picture, (margin, margin))
    return page
