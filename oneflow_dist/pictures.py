"""What a model wrote, as a picture: documents with their images in the text."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from oneflow_dist.canvas import Canvas, blank_canvas, parse_prompt
from oneflow_dist.config import Config
from oneflow_dist.data.codec import decode_pixels
from oneflow_dist.data.tokenizer import Tokenizer, load_tokenizer
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.runtime import is_main
from oneflow_dist.sampler import SamplerSettings, generate

INK, FAINT, PAPER = "#1c1c28", "#8a8a99", "#ffffff"
DOCUMENTS_PER_PROMPT = 4


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
    page = stack([text_line(f"step {step}", 18), *(draw_document(canvas, tokenizer) for canvas in canvases)], gap=12)
    with_margin(page, 24).save(path)
    return path


def draw_document(canvas: Canvas, tokenizer: Tokenizer, width: int = 960, image_height: int = 64) -> Image.Image:
    """Text and images of a document in reading order, wrapped at `width` pixels."""
    font = ImageFont.load_default(18)
    boxes: list[str | Image.Image] = []
    for part in canvas.parts(tokenizer):
        if isinstance(part, str):
            boxes += part.split()
        else:
            boxes.append(enlarge(decode_pixels(canvas.latents[part]), image_height))
    has_image = any(isinstance(box, Image.Image) for box in boxes)
    line_height = image_height if has_image else 24
    placed, x, y = [], 0, 0
    for box in boxes or ["(empty)"]:
        box_width = int(font.getlength(box)) if isinstance(box, str) else box.width
        if x > 0 and x + box_width > width:
            x, y = 0, y + line_height + 8
        placed.append((box, x, y))
        x += box_width + 8
    page = Image.new("RGB", (width, y + line_height), PAPER)
    draw = ImageDraw.Draw(page)
    for box, left, top in placed:
        if isinstance(box, str):
            draw.text((left, top + line_height // 2), box, fill=INK, font=font, anchor="lm")
        else:
            page.paste(box, (left, top))
    return page


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
