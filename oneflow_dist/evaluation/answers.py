"""What a model answered, as files, so that scorers need no model: lines of JSON for documents, PNGs for pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

PICTURES = "pictures"  # folder beside the lines
KINDS: dict[str, type] = {"text": str, "image": str, "born": list, "tokens": list, "end": int}  # in a line of JSON


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A stretch of text or a picture of an answer, in reading order, and when it came."""

    text: str = ""
    image: str = ""  # file, or nothing where this is text
    born: tuple[int, ...] = ()  # step at which each token of a text, or the picture, appeared; 0: it was asked for
    tokens: tuple[str, ...] = ()  # of a text
    end: int = 0  # step at which the picture was done


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One document, without what was given."""

    key: str  # of its item
    number: int  # which of the task's `repeats`
    parts: tuple[Part, ...]
    steps: int = 0  # of the whole
    rows: int = 0  # that the model had of it in all these
    hit_cap: bool = False  # something was left out since sampling.max_rows was reached
    folder: Path = field(default_factory=Path)  # where its pictures are

    @property
    def text(self) -> str:
        """All its text."""
        return " ".join(part.text for part in self.parts if part.text)

    @property
    def images(self) -> list[str]:
        """Files of its pictures."""
        return [part.image for part in self.parts if part.image]

    def pictures(self) -> list[Image.Image]:
        """Its pictures."""
        return [read_png(self.folder / name) for name in self.images]


def strip_name(image: str) -> str:
    """The file of an image's states side by side, from its birth to its end."""
    return f"{image.removesuffix('.png')}.steps.png"


def read_png(path: Path) -> Image.Image:
    """A picture of an answer, whole.

    Raises:
        ValueError: it is missing or broken.
    """
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path}: no picture ({error}); write it again, with what stands beside it") from error


def encode_png(picture: Image.Image) -> bytes:
    """The bytes of a PNG."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def write_line(answer: Answer) -> str:
    """An answer as a line of JSON; what says nothing is left out."""
    table = asdict(answer)
    del table["folder"]
    table["parts"] = [{key: value for key, value in part.items() if value} for part in table["parts"]]
    return json.dumps(table, ensure_ascii=False) + "\n"


def read_line(line: str, folder: Path, where: str = "answer") -> Answer:
    """Back from `write_line`.

    Args:
        folder: of its pictures.
        where: what an error names.

    Raises:
        ValueError: it is none.
    """
    try:
        table: dict[str, Any] = json.loads(line)
        return Answer(**{**table, "parts": tuple(map(_read_part, table["parts"]))}, folder=folder)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{where}: a damaged answer ({error}); remove it and its file, and answer again") from error


def _read_part(table: Any) -> Part:
    """Others write answers too: what is of another kind would else be found only where it is counted."""
    if not isinstance(table, dict):
        raise TypeError(f"a part is {table!r}, not a table")
    for name, value in table.items():
        if not isinstance(value, KINDS.get(name, object)):
            raise TypeError(f"{name} is {value!r}, not of the kind {KINDS[name].__name__}")
    if not all(isinstance(step, int) for step in table.get("born", [])):
        raise TypeError(f"born is {table['born']}, not steps")
    if table.get("text") and table.get("image"):
        raise ValueError(f"{table} is both a text and an image")
    fields: dict[str, Any] = {name: tuple(own) if isinstance(own, list) else own for name, own in table.items()}
    return Part(**fields)


def read_answers(folder: Path) -> list[Answer]:
    """All answers of a task, in the order of its items.

    Raises:
        ValueError: there is none, or one is damaged.
    """
    answers = [*_read_all(folder)]
    if not answers:
        raise ValueError(f"{folder}: no answers; write them first by oneflow evaluate")
    return answers


def _read_all(folder: Path) -> Iterator[Answer]:
    for path in sorted(folder.glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:  # splitlines would also cut at line separators inside of texts
            for number, line in enumerate(file, start=1):
                yield read_line(line, folder / PICTURES, f"{path}, line {number}")
