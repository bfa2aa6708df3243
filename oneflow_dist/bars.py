"""How far long work is: a bar in a terminal, and anywhere else a line now and then."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

BAR_SECONDS, LINE_SECONDS = 0.5, 15.0  # between two looks


def bar(iterable: Iterable[Any] | None = None, desc: str | None = None, **options: Any) -> tqdm:
    """Tqdm on standard error, as every program here shows it; `options` are its own."""
    stream = sys.stderr
    if is_terminal(stream):
        return tqdm(iterable, desc, file=stream, mininterval=BAR_SECONDS, dynamic_ncols=True, **options)
    # Time is looked at in every step, so that no thread of tqdm's adds lines; and a bar within a bar has no row of its
    # own, so that the cursor does not move.
    how: dict[str, Any] = {"mininterval": LINE_SECONDS, "miniters": 1, "position": 0, "ncols": 0}
    return tqdm(iterable, desc, file=_Lines(stream), **how, **options)


def is_terminal(stream: Any) -> bool:
    """Whether a bar can be drawn there; who sets NO_COLOR, or has TERM=dumb, wants lines."""
    return stream.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")


class _Lines:
    """Takes what tqdm writes over and over into one line, and writes a line each time."""

    def __init__(self, stream: Any):
        self._stream, self._last = stream, ""

    def write(self, text: str) -> None:
        line = text.strip()
        if line and line != self._last:
            self._stream.write(line + "\n")
            self._last = line

    def flush(self) -> None:
        self._stream.flush()
