"""Folders as users have them, written from what shall lie in them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

from PIL import Image

from oneflow_dist.prepare.folders import Folder
from oneflow_dist.prepare.items import Blob, Item, Source


def png(color: str = "red", size: tuple[int, int] = (4, 4)) -> bytes:
    """A small picture."""
    file = io.BytesIO()
    with Image.new("RGB", size, color) as image:
        image.save(file, "png")
    return file.getvalue()


PNG = png()


def write_files(root: Path, files: dict[str, bytes | str | list[Any] | dict[str, Any]]) -> Path:
    """Files by their paths: bytes, text, or what JSON says."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list | dict):
            content = json.dumps(content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    root.mkdir(exist_ok=True)
    return root


def write_folder(root: Path, files: dict[str, bytes | str | list[Any] | dict[str, Any]]) -> Folder:
    """The same, listed."""
    return Folder(write_files(root, files))


def captions_of(source: Source) -> dict[str, list[str]]:
    """Captions by the name of the picture, of items without a problem."""
    return {picture_of(item).name: list(item.captions) for item in source.items if item.problem is None}


def problems_of(source: Source) -> dict[str, str]:
    """Problems by the name of the item."""
    return {item.name: item.problem for item in source.items if item.problem is not None}


def picture_of(item: Item) -> Blob:
    """The one picture of a pair."""
    (blob,) = item.parts
    assert isinstance(blob, Blob)
    return blob


def shown(parts: tuple[str | Blob, ...]) -> list[str]:
    """Texts and pictures of a document, these as <NAME>."""
    return [part if isinstance(part, str) else f"<{part.name}>" for part in parts]


def data_url(content: bytes, kind: str = "image/png") -> str:
    """An address that is the picture itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
