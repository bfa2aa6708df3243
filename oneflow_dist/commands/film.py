"""How documents came about, as frames: tokens that appear, pieces that leave their noise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image

from oneflow_dist.canvas import Canvas
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.pictures import PAPER, beside, draw_numbered, with_margin

MOST_STATES = 48  # before the last one


@dataclass(kw_only=True)
class Film:
    """States of documents, spread evenly over the steps; thinned as they come, since nobody knows how many will."""

    stride: int = 1  # steps from one state to the next
    states: dict[int, dict[int, Canvas]] = field(default_factory=dict)  # by step and number of the document

    def take(self, step: int, documents: Mapping[int, Canvas], is_last: bool = False) -> None:
        """Keep the state after a step if it is one of those to keep; the last one always is."""
        if step % self.stride and not is_last:
            return
        self.states[step] = {index: canvas.copy() for index, canvas in documents.items()}
        if len(self.states) > MOST_STATES and not is_last:
            self.stride *= 2
            self.states = {step: state for step, state in self.states.items() if step % self.stride == 0}

    def frames(self, tokenizer: Tokenizer) -> list[Image.Image]:
        """A page of all documents for each state; a document has the same place in all of them."""
        drawn = [
            [draw_numbered(canvas, index, tokenizer) for index, canvas in sorted(state.items())]
            for _, state in sorted(self.states.items())
        ]
        sizes = [largest(of_document) for of_document in zip(*drawn, strict=True)]
        return [with_margin(beside([*map(pad, documents, sizes)]), 24) for documents in drawn]


def join_films(films: Sequence[Film]) -> Film:
    """One film of what several show at the same time; who has ended stays as it is."""
    stride, last = max(film.stride for film in films), max(max(film.states) for film in films)
    joined = Film(stride=stride)
    for step in [*range(0, last, stride), last]:
        shown = [film.states[max(taken for taken in film.states if taken <= step)] for film in films]
        joined.states[step] = {index: canvas for state in shown for index, canvas in state.items()}
    return joined


def largest(pictures: Sequence[Image.Image]) -> tuple[int, int]:
    """The width and the height that all of them fit in."""
    return max(picture.width for picture in pictures), max(picture.height for picture in pictures)


def pad(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture at the upper left of a page of this size."""
    page = Image.new("RGB", size, PAPER)
    page.paste(picture, (0, 0))
    return page
