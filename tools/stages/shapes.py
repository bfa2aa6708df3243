"""easy-VQA's drawings: what is asked of each, and what its questions say that it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Asked = list[tuple[bytes, list[tuple[str, str]]]]  # a picture, and its questions with their answers
COLOURS = ("red", "green", "blue", "black", "gray", "teal", "brown", "yellow")
SHAPES = ("circle", "rectangle", "triangle")


def ask_vqa(package: Any, split: str) -> Asked:
    """The pictures of a split of easy-VQA, PNGs of 64x64 pixels, each with all its questions."""
    paths = getattr(package, f"get_{split}_image_paths")()
    turns: dict[int, list[tuple[str, str]]] = {}
    for question, answer, number in zip(*getattr(package, f"get_{split}_questions")(), strict=True):
        turns.setdefault(number, []).append((question, answer))
    return [(Path(paths[number]).read_bytes(), asked) for number, asked in turns.items()]


def caption_of(turns: list[tuple[str, str]]) -> str:
    """What the open questions of a picture say of it, as "a red circle" or "a red shape"; "" if they say nothing."""
    said = {word for turn in turns if turn[1] not in ("yes", "no") for text in turn for word in text.strip("?").split()}
    colour = next((f"{word} " for word in COLOURS if word in said), "")
    shape = next((word for word in SHAPES if word in said), "shape")
    return f"a {colour}{shape}" if colour or shape != "shape" else ""
