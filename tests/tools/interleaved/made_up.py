"""Small shards of what the interleaved benchmark is made of."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image, ImageDraw

from tests.precompute.making import encode, picture, write_tar
from tools.interleaved.icons import EMOJI

CAPTION = "Figure {} of the {} book. (credit: nobody)"


def emoji(number: int, left: int = 8, side: int = 48) -> Image.Image:
    """A dark shape on white; no two numbers give the same."""
    page = Image.new("RGB", (64, 64), (255, 255, 255))
    draw = ImageDraw.Draw(page)
    draw.rectangle((left, 8, left + side - 1, 7 + side), outline=(0, 0, 0))
    cell = side // 6
    for bit in range(6):
        place = (number + 3 * bit) % 6
        corner = (left + cell * bit, 8 + cell * place)
        draw.rectangle((*corner, corner[0] + cell * 2 - 1, corner[1] + cell - 1), fill=(40 * bit, 10 * number, 0))
    return page


def write_emoji(folder: Path) -> str:
    """Two shards with the emoji of all nouns, and others; returns their pattern."""
    folder.mkdir(parents=True, exist_ok=True)
    captions = ["grinning face", *EMOJI.values(), "rabbit face"]
    for shard, own in enumerate((captions[:4], captions[4:])):
        members = []
        for number, caption in enumerate(own, start=4 * shard):
            members += [(f"{number}.png", encode(emoji(number))), (f"{number}.txt", caption.encode())]
        write_tar(folder / f"emoji-train-{shard:06d}.tar", members)
    return f"{folder}/emoji-train-*.tar"


def section(key: str, book: str, captions: list[str], first: int) -> list[tuple[str, bytes]]:
    """A text and figures with these captions."""
    segments: list[dict[str, str]] = [{"type": "text", "text": f"About {book}.", "role": "title"}]
    files = []
    for number, caption in enumerate(captions):
        segments.append({"type": "image", "image": f"{number}.jpg", "caption": caption, "alt": "a figure"})
        files.append((f"{key}.{number}.jpg", encode(picture(first + number, 24, 30), "JPEG")))
    return [(f"{key}.json", json.dumps({"id": key, "book": book, "segments": segments}).encode()), *files]


def write_sections(folder: Path) -> str:
    """Two sections of a book with nine captioned figures, one of a book with two; returns the pattern of the shard."""
    folder.mkdir(parents=True, exist_ok=True)
    large = [CAPTION.format(number, "large") for number in range(9)]
    members = section("large-1", "large", [*large[:5], "", "too short", "x" * 401], 0)
    members += section("small-1", "small", [CAPTION.format(number, "small") for number in range(2)], 20)
    members += section("large-2", "large", [large[5].replace(" ", "\n  ", 1), *large[6:]], 40)
    write_tar(folder / "sections-val-000000.tar", members)
    return f"{folder}/sections-val-*.tar"
