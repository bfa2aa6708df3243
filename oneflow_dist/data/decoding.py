"""The files of a record become a document: text as tokens, all else as latents."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from oneflow_dist.containers import Document, PiecePart, ShardRecord, TextPart
from oneflow_dist.data.conversations import Segment, clean, read_document
from oneflow_dist.data.latents import decode_latent, decode_texts
from oneflow_dist.data.media import encode_file, encode_view
from oneflow_dist.data.tar import DIMENSIONS, IMAGE_EXTENSIONS
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.modality import BESIDE, Modalities, understanding_of
from oneflow_dist.views import read_view

CAPTION = "txt"  # the caption that is a file of its own; any other is a field of the .json


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
    modalities: Modalities,
    without: str = "",
    with_features: bool = False,
) -> Document:
    """The text and the pieces of a record, in reading order.

    Args:
        fields: of its .json, see `read_fields`.
        caption: "txt", or the field that holds the caption of a pair.
        without: "pieces" or "text", which then is neither decoded nor in the document.
        with_features: also those of pictures, for the modality with `understanding`.

    Raises:
        ValueError: it is no pair, document or question with its answer; a piece is broken, missing or named twice;
            its tokens are another tokenizer's; its text cannot be tokenized.
    """
    with naming_sample(record.key):
        segments = read_segments(record, fields, caption, reading)
        is_default = caption == CAPTION and reading == Reading()  # the texts that oneflow precompute tokenizes
        stored = _stored_tokens(record, tokenizer) if is_default else []
        num_texts = sum(segment.text is not None for segment in segments)
        if stored and len(stored) != num_texts:
            raise ValueError(
                f"sample {record.key}: tokens of {len(stored)} texts, but it has {num_texts}; "
                "write it again by oneflow precompute"
            )
        tokens = iter(stored)
        parts: list[TextPart | PiecePart] = []
        for segment in segments:
            if segment.piece is not None and without != "pieces":
                part = replace(_decode_piece(record, segment.piece, segment.kind, modalities), role=segment.role)
                if with_features:
                    part = replace(part, features=_decode_features(record, segment.piece, modalities))
                parts.append(part)
            elif segment.text is not None and without != "text":
                ids = next(tokens, None)
                parts.append(TextPart(tokens=tokenizer.encode(segment.text) if ids is None else ids, role=segment.role))
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
    """A document or conversation, a question with its answer, or a pair; text without content is left out."""
    reading = reading or Reading()
    names = list_pieces(record)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        files = ", ".join(extension for extension in record.files if extension.rpartition(".")[0] == twice)
        raise ValueError(f"sample {record.key}: {files} have one name; number them, as 0.png and 1.wav")
    if caption == CAPTION or "segments" in fields:
        with naming_sample(record.key):
            if (segments := read_document(fields, names)) is not None:
                return segments
    pieces = [Segment(piece=name) for name in names]
    if reading.question in fields and reading.answer in fields:
        question, answer = (_read_text(record, fields, name) for name in (reading.question, reading.answer))
        return [*pieces, Segment(text=question), Segment(text=answer, role="assistant")]
    if caption != CAPTION:
        return [Segment(text=_read_text(record, fields, caption)), *pieces]
    if len(names) > 1 or not (names or CAPTION in record.files):
        raise ValueError(
            f"sample {record.key}: a pair is one .txt and one image, but it holds {', '.join(sorted(record.files))}; "
            "add what is missing, or a .json with segments"
        )
    if CAPTION not in record.files:
        return pieces
    try:
        text = clean(record.files[CAPTION].decode("utf-8")).strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"sample {record.key}: its caption is no UTF-8 ({error}); write it again") from error
    if not text:
        raise ValueError(f"sample {record.key}: its caption is empty; remove the sample or write a caption")
    return [Segment(text=text), *pieces]


def list_pieces(record: ShardRecord) -> list[str]:
    """The names of its pieces, files or latents, in the order of the files: "0" of 0.jpg or 0.npy, "" of png."""
    held = [extension.rpartition(".")[::2] for extension in record.files if is_piece(extension)]
    with_file = {name for name, kind in held if kind != "npy"}
    return [name for name, kind in held if kind != "npy" or name not in with_file]  # a latent may stand beside its file


def is_piece(extension: str) -> bool:
    """Whether a member is a picture, another file that is read, or a latent; not text or an array beside these."""
    stem, _, kind = extension.rpartition(".")
    return kind in DIMENSIONS or (kind == "npy" and stem.rpartition(".")[2] not in BESIDE)


def _read_text(record: ShardRecord, fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    text = clean(value).strip() if isinstance(value, str) else ""
    if not text:
        raise ValueError(
            f"sample {record.key}: its .json has no text in {name!r}, but {value!r}; write it or filter it"
        )
    return text


def _decode_piece(record: ShardRecord, name: str, kind: str, modalities: Modalities) -> PiecePart:
    where, stem = _place(record, name)
    file = next(f"{stem}{end}" for end in ("npy", *DIMENSIONS) if f"{stem}{end}" in record.files)
    last = file.rpartition(".")[2]
    kind = _find_modality(kind, name, DIMENSIONS.get(last, 2), modalities, where)
    modality, data = modalities[kind], record.files[file]
    if last != "npy":
        values = encode_file(data, modality, where)
        return PiecePart.exact(kind, values)
    if name.rpartition(".")[2] == kind:  # values as they are
        made_by = None
    elif "autoencoder" not in record.header or modality.dimensions != 2:
        raise ValueError(
            f"{where}: a latent in a shard without a header; write it by oneflow precompute, or call it "
            f"{stem}{kind}.npy if it holds values as they are"
        )
    else:
        made_by = record.header["autoencoder"]
    return decode_latent(data, record.files.get(f"{stem}mirrored.npy"), made_by, modality, kind, where)


def _find_modality(kind: str, name: str, dimensions: int, modalities: Modalities, where: str) -> str:
    """The modality that a segment names, or the name of the file, or else the first of so many dimensions."""
    for named in (kind, name.rpartition(".")[2]):
        if named in modalities and modalities[named].is_target:
            return named
    for named, modality in modalities.items():
        if modality.dimensions == dimensions and modality.is_target and kind in ("", "image"):
            return named
    raise ValueError(
        f"{where}: {f'a {kind}' if kind else 'a piece'} of {dimensions} dimensions, but the config has "
        f"{', '.join(f'[modality.{named}]' for named in modalities) or 'no [modality]'}; add one, or give the source a "
        "task that leaves it out"
    )


def _decode_features(record: ShardRecord, name: str, modalities: Modalities) -> PiecePart | None:
    """The features of a picture, or its pixels for an encoder to look at; None for what is no picture."""
    where, stem = _place(record, name)
    kind = understanding_of(modalities, where)
    modality = modalities[kind]
    picture = next((f"{stem}{end}" for end in IMAGE_EXTENSIONS if f"{stem}{end}" in record.files), None)
    if modality.understanding == "features" and f"{stem}features.npy" in record.files:
        return decode_latent(record.files[f"{stem}features.npy"], None, None, modality, kind, f"{where}, features")
    if modality.understanding == "live" and picture:
        pixels = encode_view(record.files[picture], read_view(modality.codec), where)
        return PiecePart.exact(kind, pixels)
    if not picture and (f"{stem}npy" not in record.files or name.rpartition(".")[2] in modalities):
        return None
    missing = "the picture itself" if modality.understanding == "live" else "features"
    raise ValueError(
        f"{where}: {missing} is not in the shard, but modality.{kind}.understanding = "
        f"{modality.understanding!r} wants it; write it by oneflow precompute --features, or give latents"
    )


def _place(record: ShardRecord, name: str) -> tuple[str, str]:
    """How messages name a piece, and how the names of its files begin."""
    return (f"sample {record.key}, {name}", f"{name}.") if name else (f"sample {record.key}", "")


def _stored_tokens(record: ShardRecord, tokenizer: Tokenizer) -> list[list[int]]:
    """The token ids that lie beside the text, which saves tokenizing it; none in shards of pictures."""
    if "tokens.npy" not in record.files:
        return []
    made_by = record.header.get("tokenizer", {}).get("sha256")
    if made_by != tokenizer.sha256:
        raise ValueError(
            f"sample {record.key}: tokenized by {made_by}, but data.tokenizer is {tokenizer.sha256} (sha256); "
            "set data.tokenizer to the file that oneflow precompute was given"
        )
    return decode_texts(record.files["tokens.npy"], f"sample {record.key}, tokens")
