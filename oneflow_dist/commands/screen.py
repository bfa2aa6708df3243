"""What a terminal shows of an answer that is being written: its new tokens, and its pictures in half blocks."""

from __future__ import annotations

import itertools
import sys
import unicodedata
from collections.abc import Iterable

from PIL import Image

NEW, FAINT, PLAIN = "\033[1;32m", "\033[2m", "\033[0m"
UPPER_HALF = "\u2580"
PREVIEW_COLUMNS = 32

Run = tuple[str, str]  # text, and the colour in which it stands ("" for none)


class Screen:
    """Lines at the bottom of a terminal that are drawn again and again."""

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self._num_lines = 0

    def draw(self, runs: Iterable[Run]) -> None:
        """Write these in place of what was drawn before; of what is longer than the screen its end."""
        lines = wrap(runs, self.columns)[-max(1, self.rows - 1) :]
        up = f"\033[{self._num_lines - 1}A" if self._num_lines > 1 else ""
        sys.stdout.write(f"\r{up}\033[J" + "\n".join(lines))
        sys.stdout.flush()
        self._num_lines = len(lines)

    def clear(self) -> None:
        """Take away what was drawn."""
        self.draw([])
        self._num_lines = 0


def wrap(runs: Iterable[Run], columns: int) -> list[str]:
    """Lines of at most so many columns, each with its own colours."""
    lines: list[list[Run]] = [[]]
    used = 0
    for text, color in runs:
        for character in text:
            width = 2 if unicodedata.east_asian_width(character) in "WF" else 1
            if character == "\n" or used + width > columns:
                lines.append([])
                used = 0
            if character != "\n":
                lines[-1].append((character, color))
                used += width
    return ["".join(_color(line)) for line in lines]


def printable(text: str) -> str:
    """Without what a terminal would obey: control characters but line ends, and marks of direction."""
    return "".join(c for c in text if c == "\n" or unicodedata.category(c) not in ("Cc", "Cf", "Cs"))


def half_blocks(picture: Image.Image, columns: int = PREVIEW_COLUMNS) -> str:
    """A picture in true colours, two pixels a character."""
    width = min(columns, picture.width)
    height = max(2, round(picture.height * width / picture.width / 2) * 2)
    pixels = picture.convert("RGB").resize((width, height))
    lines = []
    for y in range(0, height, 2):
        pairs = [(pixels.getpixel((x, y)), pixels.getpixel((x, y + 1))) for x in range(width)]
        lines.append("".join(f"\033[38;2;{_rgb(up)};48;2;{_rgb(low)}m{UPPER_HALF}" for up, low in pairs) + PLAIN)
    return "\n".join(lines)


def _rgb(color: object) -> str:
    assert isinstance(color, tuple)
    return ";".join(map(str, color))


def _color(line: list[Run]) -> Iterable[str]:
    for color, run in itertools.groupby(line, key=lambda each: each[1]):
        text = "".join(character for character, _ in run)
        yield f"{color}{text}{PLAIN}" if color else text
