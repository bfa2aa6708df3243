"""The files of a record become a sample: tokens, latents, and what is prompt and what is target."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from oneflow_dist.config import ImageConfig
from oneflow_dist.containers import Sample, ShardRecord
from oneflow_dist.data.codec import encode_pixels
from oneflow_dist.data.tokenizer import Tokenizer

TASKS = ("text_to_image", "image_to_text", "both", "interleaved", "text_only", "image_only")
IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch of text, or one image (its encoded bytes)."""

    text: str | None = None
    image: bytes | None = None


def decode_record(record: ShardRecord, task: str, prompt: str, tokenizer: Tokenizer, image: ImageConfig) -> Sample:
    """Tokens and latents of one record for one task.

    The first token is BOS, then comes `prompt`, then the document:

        text_to_image   all text, then the images; the images are target
        image_to_text   all images, then the text; the text is target
        both            in reading order, everything is target, images are there from the start
        interleaved     in reading order, everything is target, images are inserted like tokens
        text_only, image_only   the other kind is left out

    Raises:
        ValueError: the record has neither text nor images that the task needs, names an image that it does not hold,
            or holds one that it does not name; an image is broken.
    """
    segments = read_segments(record)
    texts = [s for s in segments if s.text is not None]
    images = [s for s in segments if s.image is not None]
    if task == "image_to_text":
        segments = images + texts
    elif task == "text_to_image":
        segments = texts + images
    elif task in ("text_only", "image_only"):
        segments = texts if task == "text_only" else images
    needed = {"text_to_image": images, "image_to_text": texts}.get(task, segments)
    if not needed:
        raise ValueError(f"sample {record.key}: nothing in it for task {task!r}; give its source another task")

    tokens, is_target, image_at = [tokenizer.bos], [False], list[int]()
    latents: list[np.ndarray] = []

    def add(new: list[int], target: bool) -> None:
        tokens.extend(new)
        is_target.extend([target] * len(new))

    add(tokenizer.encode(prompt), False)
    for number, segment in enumerate(segments):
        if segment.image is not None:
            latents.append(encode_pixels(segment.image, image, f"sample {record.key}, image {len(latents)}"))
            image_at.append(len(tokens))
            add([tokenizer.image], task != "image_to_text")
        elif segment.text is not None:
            if number > 0 and segments[number - 1].text is not None:
                separator = "\n\n"
            else:  # after an image or the prompt
                separator = " " if len(tokens) > 1 else ""
            add(tokenizer.encode(separator + segment.text), task != "text_to_image")
    return Sample(
        key=record.key,
        tokens=np.array(tokens, dtype=np.int64),
        is_target=np.array(is_target),
        image_at=np.array(image_at, dtype=np.int64),
        latents=np.stack(latents) if latents else np.zeros((0, *image.shape), dtype=np.float32),
        is_interleaved=task == "interleaved",
    )


def read_segments(record: ShardRecord) -> list[Segment]:
    """A document (`json` with `segments`) or a pair (text and image), in reading order."""
    metadata = _read_json(record)
    image_names = [name for name in record.files if name.rpartition(".")[2] in IMAGE_EXTENSIONS]
    if "segments" in metadata:
        if not isinstance(metadata["segments"], list):
            raise ValueError(f"sample {record.key}: segments is {metadata['segments']!r}, not a list; write it again")
        segments = [_read_segment(record, entry) for entry in metadata["segments"]]
        named = [entry["image"] for entry in metadata["segments"] if entry["type"] == "image"]
        if sorted(named) != sorted(image_names):
            raise ValueError(
                f"sample {record.key}: its segments name {len(named)} images ({', '.join(named)}) but it holds "
                f"{len(image_names)} ({', '.join(image_names)}); name each once"
            )
        return [s for s in segments if s.image is not None or s.text]
    if "txt" not in record.files or len(image_names) != 1:
        raise ValueError(
            f"sample {record.key}: a pair is one .txt and one image, but it holds {', '.join(sorted(record.files))}; "
            "add what is missing, or a .json with segments"
        )
    try:
        text = record.files["txt"].decode("utf-8").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"sample {record.key}: its caption is no UTF-8 ({error}); write it again") from error
    if not text:
        raise ValueError(f"sample {record.key}: its caption is empty; remove the sample or write a caption")
    return [Segment(text=text), Segment(image=record.files[image_names[0]])]


def cut_window(sample: Sample, max_rows: int, image: ImageConfig, rng: np.random.Generator) -> Sample:
    """A random stretch of the targets of an overlong sample, after its prompt, of at most `max_rows` rows."""
    extent = np.ones(len(sample.tokens), dtype=np.int64)
    extent[sample.image_at] += image.num_rows
    is_prompt = ~sample.is_target
    targets = np.flatnonzero(sample.is_target)
    room = max_rows - int(extent[is_prompt].sum())
    if room < 1:
        raise ValueError(f"sample {sample.key}: its prompt alone needs {max_rows - room} rows, the limit is {max_rows}")
    rows_from_end = np.cumsum(extent[targets][::-1])[::-1]
    num_starts = int((rows_from_end > room).sum()) + 1  # the last one reaches the end, later ones leave room unused
    start = int(rng.integers(num_starts))
    inside = np.cumsum(extent[targets][start:]) <= room
    keep = is_prompt.copy()
    keep[targets[start:][inside]] = True
    is_image = np.isin(np.arange(len(keep)), sample.image_at)
    return Sample(
        key=sample.key,
        tokens=sample.tokens[keep],
        is_target=sample.is_target[keep],
        image_at=np.flatnonzero(is_image[keep]),
        latents=sample.latents[keep[sample.image_at]],
        is_interleaved=sample.is_interleaved,
    )


def num_rows(sample: Sample, image: ImageConfig) -> int:
    """Trunk rows of the complete sample."""
    return len(sample.tokens) + len(sample.image_at) * image.num_rows


def _read_json(record: ShardRecord) -> dict[str, Any]:
    if "json" not in record.files:
        return {}
    try:
        value = json.loads(record.files["json"])
    except ValueError as error:
        raise ValueError(f"sample {record.key}: its .json is broken ({error}); write the sample again") from error
    return value if isinstance(value, dict) else {}


def _read_segment(record: ShardRecord, entry: Any) -> Segment:
    kind = entry.get("type") if isinstance(entry, dict) else None
    if kind not in ("text", "image") or not isinstance(entry.get(kind), str):
        raise ValueError(f"sample {record.key}: segment {entry!r} is neither text nor image; write the sample again")
    if kind == "text":
        return Segment(text=entry["text"])
    if entry["image"] not in record.files:
        raise ValueError(
            f"sample {record.key}: its segments name the image {entry['image']!r}, but it holds "
            f"{', '.join(sorted(record.files))}; add the image or remove the segment"
        )
    return Segment(image=record.files[entry["image"]])
