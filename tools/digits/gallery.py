"""A page of what a model of digits wrote: captioned digits, counting documents, one document being written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from oneflow_dist.canvas import Canvas
from oneflow_dist.data.codec import decode_pixels
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.pictures import FAINT, draw_document, enlarge, grid, stack, text_line, with_margin

COLUMNS, ROWS, DOCUMENTS, MOMENTS = 8, 4, 5, 9
CARD = 112  # pixels of a card's picture
WIDTH = 1240


def draw_gallery(
    path: Path,
    single: list[Canvas],
    both: list[Canvas],
    interleaved: list[Canvas],
    tokenizer: Tokenizer,
    states: list[Canvas],
) -> None:
    """Write the page. `states` is one document after each step, from before the first."""
    cards = [_card(canvas, tokenizer) for canvas in single[: COLUMNS * (ROWS - 1)]]
    together = [_card(canvas, tokenizer) for canvas in both[:COLUMNS]]
    documents = [draw_document(c, tokenizer, width=WIDTH) for c in _varied(interleaved)]
    moments = np.unique(np.linspace(0, len(states) - 1, MOMENTS).round().astype(int))
    strip = [draw_moment(states[step], int(step), len(states) - 1, tokenizer) for step in moments]
    sections = [
        draw_section("Captions and images, written together from nothing", grid(cards, COLUMNS, gap=24)),
        draw_section("An image to paint, and a hole for its caption, from the start", grid(together, COLUMNS, gap=24)),
        draw_section("Counting documents: the prompt is “count up:”", stack(documents, gap=14)),
        draw_section("One document being written: tokens and images appear, images sharpen", stack(strip, gap=10)),
    ]
    with_margin(stack(sections, gap=36), 32).save(path)


def draw_section(title: str, content: Image.Image) -> Image.Image:
    """A part of a page under its title."""
    return stack([text_line(title, 24), content], gap=16)


def _card(canvas: Canvas, tokenizer: Tokenizer) -> Image.Image:
    """A document's images with its text below."""
    blank = Image.new("RGB", (CARD, CARD), "#f4f4f6")
    height = CARD // max(1, len(canvas.latents("image")))
    pictures = [enlarge(decode_pixels(latent), height) for latent in canvas.latents("image")] or [blank]
    side_by_side = grid(pictures, columns=len(pictures), gap=0)
    text = " ".join(part for part in canvas.parts(tokenizer) if isinstance(part, str))
    caption = text_line(text if len(text) <= 24 else text[:23] + "…", 15)
    return stack([side_by_side, caption], gap=6, align="centre")


def _varied(canvases: list[Canvas]) -> list[Canvas]:
    """The first document of each number of images, in that order."""
    by_length = {len(canvas.latents("image")): canvas for canvas in reversed(canvases)}
    return [by_length[length] for length in sorted(by_length)][:DOCUMENTS]


def draw_moment(canvas: Canvas, step: int, last: int, tokenizer: Tokenizer, image_height: int = 56) -> Image.Image:
    """A document as it stands after a step, with the step's number on the left."""
    label = text_line(f"step {step} of {last}", 15, FAINT)
    document = draw_document(canvas, tokenizer, width=WIDTH - 130, image_height=image_height)
    page = Image.new("RGB", (WIDTH, max(document.height, image_height)), "white")
    page.paste(label, (0, (page.height - label.height) // 2))
    page.paste(document, (130, (page.height - document.height) // 2))
    return page
