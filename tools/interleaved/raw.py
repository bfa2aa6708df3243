"""What the benchmark is made of: emoji by their names, and figures of textbooks with their captions."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tools.interleaved.icons import EMOJI, make_icon
from tools.shards import read_records

SHORTEST, LONGEST = 20, 400  # characters of a caption


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of a textbook."""

    key: str
    book: str
    caption: str
    content: bytes


def read_icons(pattern: str) -> dict[str, np.ndarray]:
    """An icon of every noun.

    Raises:
        ValueError: no emoji has the caption of one of them.
    """
    nouns, icons = {caption: noun for noun, caption in EMOJI.items()}, dict[str, np.ndarray]()
    for record in read_records(pattern):
        noun = nouns.get(record.files.get("txt", b"").decode().strip())
        if noun is not None and noun not in icons and "png" in record.files:
            icons[noun] = make_icon(Image.open(io.BytesIO(record.files["png"])))
    if missing := [caption for noun, caption in EMOJI.items() if noun not in icons]:
        raise ValueError(f"--emoji: {pattern} has no picture of {missing[0]}; name shards of captioned emoji")
    return {noun: icons[noun] for noun in EMOJI}


def list_figures(pattern: str) -> list[Figure]:
    """All figures with a caption of some length.

    Raises:
        ValueError: a section names a figure that is not there.
    """
    from oneflow_dist.data.decoding import read_fields

    found = []
    for record in read_records(pattern):
        fields = read_fields(record)
        key = record.key.rpartition("/")[2]
        for number, segment in enumerate(fields.get("segments", [])):
            caption = " ".join(str(segment.get("caption", "")).split())
            if segment.get("type") == "image" and SHORTEST <= len(caption) <= LONGEST:
                content = record.files.get(segment["image"])
                if content is None:
                    raise ValueError(f"sample {record.key}: no file {segment['image']}; copy the shard again")
                found.append(Figure(f"{key}-{number}", str(fields.get("book", "")), caption, content))
    return found
