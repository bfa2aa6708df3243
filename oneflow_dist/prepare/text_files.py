"""Text files as people have them: any usual encoding, of a size that is text, and JSON that says where it is broken."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

MAX_CAPTION_BYTES = 1 << 20  # of a text beside a picture
MAX_PAGE_BYTES = 64 << 20  # of a page
MAX_TABLE_BYTES = 2 << 30  # of a file that tells of all pictures; LLaVA's has 1.0 GB
MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}


def read_text(path: Path, max_bytes: int) -> str:
    """The text of a file.

    Raises:
        ValueError: it is larger than `max_bytes`.
    """
    return decode_text(read_bytes(path, max_bytes))


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """All bytes of a file of text.

    Raises:
        ValueError: it is larger than `max_bytes`.
    """
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise ValueError(f"too large for a text; split or remove it ({path.name}: more than {max_bytes:,} bytes)")
    return content


def decode_text(content: bytes) -> str:
    """Text by its byte order mark; without one UTF-8, or UTF-16 that shows by its zeros; and else Windows-1252."""
    for mark, encoding in MARKS.items():
        if content.startswith(mark):
            return content[len(mark) :].decode(encoding, "replace")
    if b"\0" in content[:64] and len(content) % 2 == 0:
        even, odd = content[:64:2].count(0), content[1:64:2].count(0)
        return content.decode("utf-16-le" if odd > even else "utf-16-be", "replace")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("cp1252" if _is_defined(content) else "latin-1")


def read_json(content: str | bytes, name: str) -> Any:
    """What a text of JSON says.

    Raises:
        ValueError: it is broken, or nested too deep.
    """
    try:
        return json.loads(content if isinstance(content, str) else decode_text(content))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is broken JSON ({error}); write it again") from error


def _is_defined(content: bytes) -> bool:
    return not any(byte in content for byte in (0x81, 0x8D, 0x8F, 0x90, 0x9D))
