"""What was made of a canvas, as the parts and pictures of an answer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from oneflow_dist.canvas import Canvas
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.evaluation.answers import Part, encode_png, strip_name
from oneflow_dist.files import write_whole
from oneflow_dist.pictures import draw_pieces


def parts_of(canvas: Canvas, tokenizer: Tokenizer, stem: str) -> tuple[Part, ...]:
    """What was made of a document: text that was not given, and pieces that were painted.

    Args:
        stem: of the files of its pictures.
    """
    made, piece_at, images = [], canvas.piece_at, 0
    stretch: list[int] = []  # places of tokens
    for place, (token, born) in enumerate(zip(canvas.tokens.tolist(), canvas.born.tolist(), strict=True)):
        kind, number = piece_at.get(place, ("", 0))
        is_made_piece = kind != "" and bool(canvas.making[kind].is_target[number] or born > 0)
        if kind == "" and born > 0 and token != tokenizer.eos:
            stretch.append(place)
            continue
        made += _text_of(stretch, canvas, tokenizer)
        stretch = []
        if is_made_piece:
            end = int(canvas.making[kind].end[number])
            made.append(Part(image=f"{stem}-{images}.png", born=(born,), end=end))
            images += 1
    return (*made, *_text_of(stretch, canvas, tokenizer))


def _text_of(places: list[int], canvas: Canvas, tokenizer: Tokenizer) -> list[Part]:
    tokens = canvas.tokens[places].tolist()
    text = tokenizer.decode(tokens).strip()
    if not text:
        return []
    single = tuple(tokenizer.decode([token]) for token in tokens)
    return [Part(text=text, born=tuple(canvas.born[places].tolist()), tokens=single)]


def write_pictures(canvas: Canvas, parts: Sequence[Part], folder: Path) -> None:
    """The files of a document's pictures."""
    for name, picture in zip([part.image for part in parts if part.image], draw_made(canvas), strict=True):
        write_whole(folder / name, encode_png(picture))


class States:
    """How the pictures of documents look after each step."""

    def __init__(self, canvases: Sequence[Canvas]):
        self.canvases = canvases
        self._drawn: list[list[tuple[int, list[Image.Image]]]] = [[] for _ in canvases]

    def take(self, step: int, changed: Iterable[int]) -> None:
        """Look at the documents that this step has changed."""
        for place in changed:
            self._drawn[place].append((step, draw_made(self.canvases[place])))

    def write(self, place: int, parts: Sequence[Part], folder: Path) -> None:
        """A file for each picture with all its states side by side, from its birth on.

        After a step there are those pictures that have been born by then, in reading order; where a correction has
        taken some back in between this is not so, and the step is left out.
        """
        images = [part for part in parts if part.image]
        for part in images:
            strip = []
            for step, drawn in self._drawn[place]:
                there = [other for other in images if other.born[0] <= step]
                if part in there and len(there) == len(drawn):
                    strip.append(drawn[there.index(part)])
            page = Image.new("RGB", (sum(picture.width for picture in strip) or 1, strip[0].height if strip else 1))
            for number, picture in enumerate(strip):
                page.paste(picture, (number * picture.width, 0))
            write_whole(folder / strip_name(part.image), encode_png(page))


def draw_made(canvas: Canvas) -> list[Image.Image]:
    """The pictures of a document that were not given, in reading order."""
    drawn = {kind: draw_pieces(making.latents(), making.modality) for kind, making in canvas.making.items()}
    return [
        drawn[kind][number]
        for token, (kind, number) in sorted(canvas.piece_at.items())
        if canvas.making[kind].is_target[number] or canvas.born[token] > 0
    ]
