"""Pixels and latents of events as JSON can hold them."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from oneflow_dist.serving.telling import Event

PREFIX = "data:image/png;base64,"


def encode_event(event: Event) -> Event:
    """An event of an engine with its pictures as data URLs and its latents as base64, in place."""
    for shown in event.get("pictures", {}).values():
        for number, pixels in shown.items():
            shown[number] = data_url(pixels)
    for part in [*event.get("parts", []), *event.get("written", [])]:
        if "picture" in part:
            part["picture"] = data_url(part["picture"])
    for pieces in event.get("pieces", {}).values():
        for piece in pieces:
            piece["picture"] = data_url(piece["picture"])
            if "latent" in piece:
                piece["latent"] |= write_latent(piece["latent"]["data"])
    return event


def data_url(pixels: np.ndarray | None) -> str | None:
    """A PNG that a page shows as it is."""
    if pixels is None:
        return None
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return PREFIX + base64.b64encode(file.getvalue()).decode()


def write_latent(latent: np.ndarray) -> dict[str, Any]:
    """Shape and little-endian float32, from which `read_latent` makes the same bits."""
    return {"shape": list(latent.shape), "data": base64.b64encode(latent.astype("<f4").tobytes()).decode()}


def read_latent(shape: list[int], data: str) -> np.ndarray:
    """What `write_latent` wrote.

    Raises:
        ValueError: not base64, or not so many numbers.
    """
    try:
        content = base64.b64decode(data, validate=True)
    except ValueError as error:
        raise ValueError("latent.data: is no base64; send what a document said") from error
    if not shape or min(shape) < 1 or len(content) != 4 * int(np.prod(shape, dtype=object)):
        raise ValueError(f"latent.shape: is {shape}, but there are {len(content)} bytes, four for each number")
    return np.frombuffer(content, dtype="<f4").astype(np.float32).reshape(shape)
