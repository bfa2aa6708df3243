"""Held-out counting documents, what is taken out of them, and what a model makes of the rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from oneflow_dist.canvas import Canvas, Prompt, PromptPart
from oneflow_dist.data.codec import pixels_to_latent
from oneflow_dist.data.tokenizer import Tokenizer
from tools.digits.grammar import COUNT_PROMPT, WORDS, count_up, load_split, read_images

EDITS = ("word", "image", "image in place")  # what is taken out; of the last the place is kept


class Edit(NamedTuple):
    """A document of which one part is to be made anew."""

    digits: list[int]
    parts: list[PromptPart]  # the whole document
    place: int  # of the part that is taken out
    prompt: Prompt


def draw_documents(number: int, longest: int, tokenizer: Tokenizer, seed: int) -> list[tuple[list[int], Prompt]]:
    """Digits and parts of counting documents of held-out images, of those alone that the judge reads rightly."""
    images, labels = load_split("heldout")
    latents = [pixels_to_latent(image) for image in images]
    is_read = read_images(latents) == labels
    rng = np.random.default_rng(seed)
    found: list[tuple[list[int], Prompt]] = []
    for _ in range(number):
        digits = count_up(rng, longest)
        parts: list[PromptPart] = [*tokenizer.encode(COUNT_PROMPT)]
        for digit in digits:
            image = latents[rng.choice(np.flatnonzero(is_read & (labels == digit)))]
            parts += [*tokenizer.encode(f" {WORDS[digit]}"), ("image", image)]
        found.append((digits, parts))
    return found


def take_out(
    documents: Sequence[tuple[list[int], Prompt]], what: str, num_prompt: int, rng: np.random.Generator
) -> list[Edit]:
    """Of each document a random word or image, after `num_prompt` tokens, as a hole or as a piece to make."""
    edits = []
    for digits, document in documents:
        parts = list(document)
        places = [place for place, part in enumerate(parts) if isinstance(part, int) == (what == "word")]
        place = int(rng.choice([place for place in places if place >= num_prompt]))
        new: PromptPart = ("image", None) if what == "image in place" else ...
        edits.append(Edit(digits, parts, place, [*parts[:place], new, *parts[place + 1 :]]))
    return edits


def is_untouched(edit: Edit, canvas: Canvas) -> bool:
    """Whether everything but what was taken out is there to the bit, before and after what was written."""
    found, after = canvas.as_prompt(), len(edit.parts) - edit.place - 1
    kept = [*found[: edit.place], *found[len(found) - after :]]
    expected = [*edit.parts[: edit.place], *edit.parts[edit.place + 1 :]]
    return len(kept) == len(expected) and all(_is_same(*pair) for pair in zip(kept, expected, strict=True))


def is_restored(edit: Edit, canvas: Canvas) -> bool:
    """Whether what was taken out is there again: the same word, or one image."""
    found = canvas.as_prompt()
    if len(found) != len(edit.parts):
        return False
    new, old = found[edit.place], edit.parts[edit.place]
    return new == old if isinstance(old, int) else not isinstance(new, int)


def _is_same(one: PromptPart, other: PromptPart) -> bool:
    if not isinstance(one, tuple) or not isinstance(other, tuple):
        return one == other
    return one[0] == other[0] and np.array_equal(np.asarray(one[1]), np.asarray(other[1]))
