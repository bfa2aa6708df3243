"""Small pictures of some of a story's figures in one colour: an emoji in cells of a two by two board."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

CELL = 8  # pixels along a side of a cell; a picture has two by two
TINTS = {"red": (200, 30, 30), "blue": (40, 70, 210), "green": (20, 140, 50), "orange": (240, 140, 0)}
TINTS["purple"] = (130, 40, 170)
EMOJI = {  # captions of the emoji that stand for them
    "fish": "fish",
    "mouse": "mouse face",
    "rabbit": "rabbit",
    "penguin": "penguin",
    "butterfly": "butterfly",
    "rooster": "rooster",
}
BLANK = 245  # what is lighter counts as background


def make_icon(picture: Image.Image) -> Float32[np.ndarray, "8 8"]:
    """How dark an emoji is, from 0 to 1, cut to what it shows and shrunk to a cell."""
    grey = np.asarray(picture.convert("L"))
    rows, columns = np.where(grey < BLANK)
    cut = Image.fromarray(grey[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1])
    side = max(cut.size)
    square = Image.new("L", (side, side), 255)
    square.paste(cut, ((side - cut.width) // 2, (side - cut.height) // 2))
    dark = 1.0 - np.asarray(square.resize((CELL, CELL), Image.Resampling.LANCZOS), dtype=np.float32) / 255.0
    return np.clip(dark / np.quantile(dark, 0.95), 0.0, 1.0) ** np.float32(0.8)


def paint_board(icon: Float32[np.ndarray, "8 8"], colour: str, cells: tuple[int, ...]) -> UInt8[np.ndarray, "16 16 3"]:
    """A picture with the icon in some of its four cells."""
    tint = np.array(TINTS[colour], dtype=np.float32)
    one = 255.0 * (1.0 - icon[..., None]) + tint * icon[..., None]
    board = np.full((2 * CELL, 2 * CELL, 3), 255.0, dtype=np.float32)
    for cell in cells:
        top, left = (CELL * part for part in divmod(cell, 2))
        board[top : top + CELL, left : left + CELL] = one
    return board.round().astype(np.uint8)


def all_boards(icons: Mapping[str, Float32[np.ndarray, "8 8"]], label: str) -> list[UInt8[np.ndarray, "16 16 3"]]:
    """Every picture of a label, as "two red fish"."""
    count, colour, noun = label.split()
    places = itertools.combinations(range(4), ("one", "two", "three").index(count) + 1)
    return [paint_board(icons[noun], colour, cells) for cells in places]
