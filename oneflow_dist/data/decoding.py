"""The files of a record become a document: text as tokens, images as patches."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from oneflow_dist.config import ImageConfig
from oneflow_dist.containers import Document, ImagePart, ShardRecord, TextPart
from oneflow_dist.data.codec import encode_pixels
from oneflow_dist.data.latents import decode_latent, decode_texts
from oneflow_dist.data.tar import IMAGE_EXTENSIONS
from oneflow_dist.data.tokenizer import Tokenizer

BESIDE = ("tokens", "mirrored", "features")  # how the names of arrays end that are no image
HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair: JSON can spell one alone, and there are no bytes of it
MARK = "\ufeff"  # of byte order, with which some editors begin a file of text
CAPTION = "txt"  # the caption that is a file of its own; any other is a field of the .json


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A stretch of text, or the name of an image: its member without the last extension, "" in a pair."""

    text: str | None = None
    image: str | None = None
    is_answer: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Which fields of a record's .json are text; what a mixture says of a source."""

    question: str = "question"
    answer: str = "answer"


@contextmanager
def naming_sample(key: str) -> Iterator[None]:
    """Inside, whatever libraries raise of a sample's content is a ValueError that names the sample."""
    try:
        yield
    except MemoryError:  # the machine's fault
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(f"sample {key}"):
            raise
        reason = str(error) if isinstance(error, ValueError) else f"broken ({error!r}); write it again or remove it"
        raise ValueError(f"sample {key}: {reason}") from error


def decode_record(
    record: ShardRecord,
    fields: Mapping[str, Any],
    caption: str,
    reading: Reading,
    tokenizer: Tokenizer,
    image: ImageConfig,
    without: str = "",
) -> Document:
    """The text and the images of a record, in reading order.

    Args:
        fields: of its .json, see `read_fields`.
        caption: "txt", or the field that holds the caption of a pair.
        without: "images" or "text", which then is neither decoded nor in the document.

    Raises:
        ValueError: it is no pair, document or question with its answer; an image is broken, missing or named twice;
            its tokens are another tokenizer's; its text cannot be tokenized.
    """
    with naming_sample(record.key):
        segments = read_segments(record, fields, caption, reading)
        is_default = caption == CAPTION and reading == Reading()  # the texts that tools/precompute_latents.py tokenizes
        stored = _stored_tokens(record, tokenizer) if is_default else []
        num_texts = sum(segment.text is not None for segment in segments)
        if stored and len(stored) != num_texts:
            raise ValueError(
                f"sample {record.key}: tokens of {len(stored)} texts, but it has {num_texts}; "
                "write it again by tools/precompute_latents.py"
            )
        tokens = iter(stored)
        parts: list[TextPart | ImagePart] = []
        for segment in segments:
            if segment.image is not None and without != "images":
                parts.append(_decode_image(record, segment.image, image))
            elif segment.text is not None and without != "text":
                ids = next(tokens, None)
                parts.append(
                    TextPart(tokens=tokenizer.encode(segment.text) if ids is None else ids, is_answer=segment.is_answer)
                )
        return Document(key=record.key, parts=tuple(parts))


def read_fields(record: ShardRecord) -> Mapping[str, Any]:
    """What a record's .json says; empty without one."""
    if "json" not in record.files:
        return {}
    try:
        value = json.loads(record.files["json"])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"sample {record.key}: its .json is broken ({error}); write the sample again") from error
    return value if isinstance(value, dict) else {}


def read_segments(
    record: ShardRecord, fields: Mapping[str, Any], caption: str = CAPTION, reading: Reading | None = None
) -> list[Segment]:
    """A document (`segments`), a question with its answer, or a pair; text without content is left out."""
    reading = reading or Reading()
    images = list_images(record)
    if "segments" in fields:
        return _read_document(record, fields["segments"], images)
    pictures = [Segment(image=name) for name in images]
    if reading.question in fields and reading.answer in fields:
        question, answer = (_read_text(record, fields, name) for name in (reading.question, reading.answer))
        return [*pictures, Segment(text=question), Segment(text=answer, is_answer=True)]
    if caption != CAPTION:
        return [Segment(text=_read_text(record, fields, caption)), *pictures]
    if len(images) > 1 or not (images or CAPTION in record.files):
        raise ValueError(
            f"sample {record.key}: a pair is one .txt and one image, but it holds {', '.join(sorted(record.files))}; "
            "add what is missing, or a .json with segments"
        )
    if CAPTION not in record.files:
        return pictures
    try:
        text = _clean(record.files[CAPTION].decode("utf-8")).strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"sample {record.key}: its caption is no UTF-8 ({error}); write it again") from error
    if not text:
        raise ValueError(f"sample {record.key}: its caption is empty; remove the sample or write a caption")
    return [Segment(text=text), *pictures]


def list_images(record: ShardRecord) -> list[str]:
    """The names of its images, pictures or latents, in the order of the files: "0" of 0.jpg or 0.npy, "" of png."""
    return [extension.rpartition(".")[0] for extension in record.files if is_image(extension)]


def is_image(extension: str) -> bool:
    """Whether a member is a picture or a latent, and not text or an array that belongs to one of them."""
    stem, _, kind = extension.rpartition(".")
    return kind in IMAGE_EXTENSIONS or (kind == "npy" and stem.rpartition(".")[2] not in BESIDE)


def _read_document(record: ShardRecord, entries: Any, images: list[str]) -> list[Segment]:
    if not isinstance(entries, list):
        raise ValueError(f"sample {record.key}: segments is {entries!r}, not a list; write it again")
    segments = [_read_segment(record, entry) for entry in entries]
    named = [segment.image for segment in segments if segment.image is not None]
    if sorted(named) != sorted(images):
        raise ValueError(
            f"sample {record.key}: its segments name {len(named)} images ({', '.join(named)}) but it holds "
            f"{len(images)} ({', '.join(images)}); name each once"
        )
    return [segment for segment in segments if segment.image is not None or segment.text]


def _read_segment(record: ShardRecord, entry: Any) -> Segment:
    kind = entry.get("type") if isinstance(entry, dict) else None
    if kind not in ("text", "image") or not isinstance(entry.get(kind), str):
        raise ValueError(f"sample {record.key}: segment {entry!r} is neither text nor image; write the sample again")
    if kind == "text":
        return Segment(text=_clean(entry["text"]), is_answer=entry.get("role") == "answer")
    return Segment(image=entry["image"].lower().rpartition(".")[0])


def _read_text(record: ShardRecord, fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    text = _clean(value).strip() if isinstance(value, str) else ""
    if not text:
        raise ValueError(
            f"sample {record.key}: its .json has no text in {name!r}, but {value!r}; write it or filter it"
        )
    return text


def _decode_image(record: ShardRecord, name: str, image: ImageConfig) -> ImagePart:
    where = f"sample {record.key}, image {name}" if name else f"sample {record.key}"
    stem = f"{name}." if name else ""
    if f"{stem}npy" in record.files:
        if "autoencoder" not in record.header:
            raise ValueError(f"{where}: a latent in a shard without a header; write it by tools/precompute_latents.py")
        mirrored = record.files.get(f"{stem}mirrored.npy")
        return decode_latent(record.files[f"{stem}npy"], mirrored, record.header["autoencoder"], image, where)
    data = next(record.files[f"{stem}{kind}"] for kind in IMAGE_EXTENSIONS if f"{stem}{kind}" in record.files)
    pixels = encode_pixels(data, image, where)
    return ImagePart(posterior=pixels[None], mirrored=pixels[None][:0])


def _stored_tokens(record: ShardRecord, tokenizer: Tokenizer) -> list[list[int]]:
    """The token ids that lie beside the text, which saves tokenizing it; none in shards of pictures."""
    if "tokens.npy" not in record.files:
        return []
    made_by = record.header.get("tokenizer", {}).get("sha256")
    if made_by != tokenizer.sha256:
        raise ValueError(
            f"sample {record.key}: tokenized by {made_by}, but data.tokenizer is {tokenizer.sha256} (sha256); "
            "set data.tokenizer to the file that tools/precompute_latents.py was given"
        )
    return decode_texts(record.files["tokens.npy"], f"sample {record.key}, tokens")


def _clean(text: str) -> str:
    """Without a byte order mark at its start; half a surrogate pair becomes U+FFFD."""
    if HALF.search(text):
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text.removeprefix(MARK)
