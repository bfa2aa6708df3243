"""Answers to the interleaved benchmark, written by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from oneflow_dist.evaluation.answers import PICTURES, Answer, Part, strip_name, write_line
from oneflow_dist.evaluation.interleaved.judge import Judge, as_vector
from oneflow_dist.evaluation.interleaved.scenes import NOUNS
from tools.interleaved.icons import all_boards
from tools.interleaved.make import list_labels

ICONS = {noun: np.random.default_rng(n).random((8, 8), dtype=np.float32) for n, noun in enumerate(NOUNS)}


@dataclass(frozen=True)
class Said:
    """Text, and the step at which each of its tokens appeared."""

    text: str
    born: tuple[int, ...] = ()


@dataclass(frozen=True)
class Shown:
    """A picture of a label, when it was made, and what it looked like after each step if that is kept."""

    label: str
    born: int | None = None
    end: int = 0
    states: tuple[str, ...] = ()


def paint(label: str, place: int = 0) -> Image.Image:
    """One of the pictures of a label."""
    return Image.fromarray(all_boards(ICONS, label)[place])


def make_judge() -> Judge:
    """Knows every picture of every scene."""
    pairs: list[tuple[str, Image.Image]] = []
    for label in list_labels(ICONS):
        pairs += [(label, Image.fromarray(board)) for board in all_boards(ICONS, label)]
    return Judge(tuple(label for label, _ in pairs), np.stack([as_vector(one) for _, one in pairs]), (16, 16))


def write_document(folder: Path, *made: Said | Shown, steps: int = 0, key: str = "0000", number: int = 0) -> Answer:
    """An answer whose pictures lie in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for place, one in enumerate(made):
        if isinstance(one, Said):
            parts.append(Part(text=one.text, born=one.born, tokens=("x",) * len(one.born)))
            continue
        name = f"{key}.{number}-{place}.png"
        paint(one.label, place=-1).save(folder / name)
        if one.states:
            paint_strip(one.states).save(folder / strip_name(name))
        parts.append(Part(image=name, born=() if one.born is None else (one.born,), end=one.end))
    return Answer(key=key, number=number, parts=tuple(parts), steps=steps, folder=folder)


def paint_strip(labels: tuple[str, ...]) -> Image.Image:
    """Pictures side by side."""
    return Image.fromarray(np.concatenate([np.asarray(paint(label)) for label in labels], axis=1))


def write_answers(folder: Path, documents: Mapping[str, tuple[Said | Shown, ...]], steps: int = 0) -> Path:
    """A part's folder of answers, by the keys of their items."""
    answers = [
        write_document(folder / PICTURES, *document, steps=steps, key=key) for key, document in documents.items()
    ]
    (folder / "000000.jsonl").write_text("".join(map(write_line, answers)), encoding="utf-8")
    return folder
