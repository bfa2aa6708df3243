"""One sample on the way to the encoder: checked, its text tokenized, its pictures cut to their buckets."""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float16, UInt8
from PIL import Image

from oneflow_dist.containers import ShardRecord
from oneflow_dist.data.conversations import Segment
from oneflow_dist.data.decoding import CAPTION, read_fields, read_segments
from oneflow_dist.data.latents import encode_texts
from oneflow_dist.data.media import check_file
from oneflow_dist.data.picture import decode_picture
from oneflow_dist.data.tar import DIMENSIONS, IMAGE_EXTENSIONS
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.modality import BESIDE
from oneflow_dist.precompute.crop import REDUCING_GAP, CropPolicy, cover_scale, crop_to, nearest_bucket
from oneflow_dist.views import View

PASSED = tuple(kind for kind in DIMENSIONS if kind not in IMAGE_EXTENSIONS)


@dataclass(slots=True, kw_only=True, eq=False)
class Picture:
    """One picture, and what the encoder makes of it."""

    name: str  # its member without the last extension, "" in a pair
    pixels: UInt8[np.ndarray, "H W 3"]
    view: UInt8[np.ndarray, "s t 3"] | None  # all of it, for the understanding encoder
    posteriors: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)  # mean and standard deviation
    features: Float16[np.ndarray, "C h w"] | None = None


@dataclass(slots=True, kw_only=True)
class PreparedSample:
    """What is written of a sample, in order: files by extension, and pictures that are to be encoded."""

    key: str
    members: list[tuple[str, bytes] | Picture]

    @property
    def pictures(self) -> list[Picture]:
        return [member for member in self.members if isinstance(member, Picture)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """How samples are prepared."""

    crop: CropPolicy
    tokenizer: Tokenizer
    view: View | None
    allow_missing_text: bool
    allow_missing_picture: bool


def prepare_sample(key: str, files: dict[str, bytes], how: Preparation) -> PreparedSample:
    """Read, check, tokenize and crop one sample.

    Raises:
        ValueError: what is wrong with it.
    """
    files = {name: data.removeprefix(codecs.BOM_UTF8) if name == CAPTION else data for name, data in files.items()}
    if how.allow_missing_text and not files.get(CAPTION, b"-").strip():
        files = {extension: content for extension, content in files.items() if extension != CAPTION}
    record = ShardRecord(key=key, files=files)
    fields = read_fields(record)
    if not fields and not isinstance(json.loads(files.get("json", b"{}")), dict):
        raise ValueError("its .json is no object")
    _check_names(files)
    segments = read_segments(record, fields)
    _check_segments(segments, fields, how)
    members: list[tuple[str, bytes] | Picture] = []
    sizes = []
    for extension, content in files.items():
        if _kind(extension) in IMAGE_EXTENSIONS:
            picture, width, height = _prepare_picture(extension, content, how)
            members.append(picture)
            sizes.append((width, height))
        else:
            if _kind(extension) in PASSED:
                check_file(content, _kind(extension), extension)
            members.append((extension, content))
    if len(sizes) == 1 and "segments" not in fields:
        members = _with_size(members, fields, *sizes[0])
    texts = [how.tokenizer.encode(segment.text) for segment in segments if segment.text is not None]
    members.append(("tokens.npy", encode_texts(texts)))
    return PreparedSample(key=key, members=members)


def is_passed(files: Mapping[str, bytes], name: str) -> bool:
    """Whether a piece is a sound or moves: its file is checked and kept as it is, since reading it takes no network."""
    stem = f"{name}." if name else ""
    return any(f"{stem}{kind}" in files for kind in PASSED)


def _check_names(files: Mapping[str, bytes]) -> None:
    arrays = [extension for extension in files if _kind(extension) == "npy"]
    if arrays:
        raise ValueError(f"it holds an array ({arrays[0]}); only pictures and text can be encoded")
    names = [_name(extension) for extension in files if _kind(extension) in IMAGE_EXTENSIONS]
    taken = [name for name in names if name.rpartition(".")[2] in BESIDE or names.count(name) > 1]
    if taken:
        raise ValueError(f"its picture cannot be called {taken[0]!r}: another file of its latents would be called so")


def _check_segments(segments: list[Segment], fields: Mapping[str, Any], how: Preparation) -> None:
    if not segments:
        raise ValueError("it holds neither text nor a picture")
    has_text = any(segment.text is not None for segment in segments)
    has_picture = any(segment.piece is not None for segment in segments)
    is_pair = "segments" not in fields and not any(segment.role == "assistant" for segment in segments)
    if is_pair and not has_text and not how.allow_missing_text:
        raise ValueError("it has no caption; write one, or allow it with --allow-missing-text")
    if is_pair and not has_picture and not how.allow_missing_picture:
        raise ValueError("it has no picture; add it, or allow it with --allow-missing-picture")


def _prepare_picture(extension: str, content: bytes, how: Preparation) -> tuple[Picture, int, int]:
    def scale_of(height: int, width: int) -> float:
        scale = REDUCING_GAP * cover_scale(nearest_bucket(how.crop, height, width), height, width)
        return max(scale, how.view.scale_of(height, width)) if how.view else scale

    try:
        picture, width, height = decode_picture(content, "RGB", scale_of)
    except ValueError as error:
        raise ValueError(f"{extension}: {error}") from error
    cropped = crop_to(picture, nearest_bucket(how.crop, height, width))
    view = _pixels(how.view.resize(picture)) if how.view else None
    return Picture(name=_name(extension), pixels=_pixels(cropped), view=view), width, height


def _with_size(
    members: list[tuple[str, bytes] | Picture], fields: Mapping[str, Any], width: int, height: int
) -> list[tuple[str, bytes] | Picture]:
    """Add the size that the picture had to the .json of a pair, where it does not say so itself."""
    size = {"width": width, "height": height}
    text = json.dumps({**fields, **size, **fields}, ensure_ascii=False)
    content = text.encode("utf-8", "backslashreplace")  # what UTF-8 cannot say becomes an escape of JSON
    places = [place for place, member in enumerate(members) if not isinstance(member, Picture) and member[0] == "json"]
    if not places:
        return [*members, ("json", content)]
    if not size.keys() <= fields.keys():
        members[places[0]] = ("json", content)
    return members


def _pixels(picture: Image.Image) -> UInt8[np.ndarray, "H W 3"]:
    return np.asarray(picture, dtype=np.uint8)


def _kind(extension: str) -> str:
    return extension.rpartition(".")[2]


def _name(extension: str) -> str:
    return extension.rpartition(".")[0]
