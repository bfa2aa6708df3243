"""WebDataset tars that were made elsewhere, and those of this project."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterable
from typing import Any, BinaryIO, NamedTuple

from oneflow_dist.data.tar import DOTTED, IMAGE_EXTENSIONS, TEXT_EXTENSIONS, Fault, Member, scan_tar, split_name
from oneflow_dist.prepare.captions import merge_captions, read_caption
from oneflow_dist.prepare.folders import Folder, split_of
from oneflow_dist.prepare.items import Blob, Item, Source
from oneflow_dist.prepare.text_files import MAX_CAPTION_BYTES, MAX_PAGE_BYTES, decode_text, read_json
from oneflow_dist.prepare.turns import is_conversation, parts_of, turns_of

PACKED = ("gz", "tgz", "bz2", "xz", "zst", "zip", "7z", "rar")  # nothing in them can be read at random
TURNS = ("messages", "conversations", "segments")  # fields of a .json that is a document or a conversation
QUESTION = {"question", "answer"}


class _Sample(NamedTuple):
    """All members with one key."""

    name: str  # "shard.tar/0001"
    members: dict[str, Member]  # by extension
    tar: Blob  # all of it
    texts: dict[str, str]  # by extension
    value: Any  # of its .json, None without one


def tars_of(folder: Folder) -> list[str]:
    """The tars of a folder."""
    return folder.with_extension("tar")


def packed_of(folder: Folder) -> list[str]:
    """Archives that have to be unpacked first."""
    return folder.with_extension(*PACKED)


def read_tars(folder: Folder) -> Source:
    """The samples of all tars, in their order.

    Raises:
        ValueError: there is no tar, or one is compressed.
    """
    tars = tars_of(folder)
    packed = [file for file in packed_of(folder) if ".tar" in file or file.endswith(".tgz")]
    if packed:
        raise ValueError(f"{folder.root}: {packed[0]} is compressed; unpack it: gunzip makes a .tar")
    if not tars:
        raise ValueError(f"{folder.root}: no .tar in it")
    items, unread = [], folder.unread(set(tars))
    for tar in tars:
        found, left_out = _read_tar(folder, tar)
        items += found
        unread += left_out
    return Source(kind=f"WebDataset, {len(tars)} tar{'s' if len(tars) > 1 else ''}", items=items, unread=unread)


def _read_tar(folder: Folder, tar: str) -> tuple[list[Item], Counter[str]]:
    if (problem := folder.problem(tar)) is not None:
        return [Item(name=tar, problem=problem)], Counter()
    blob = folder.blob(tar)
    items: list[Item] = []
    with blob.path.open("rb") as file:
        contents = scan_tar(file, blob.path.stat().st_size)
        unread = Counter({kind: count for kind, count in contents.unread.items() if not kind.startswith(DOTTED)})
        members = list(contents.members)
        if unread.total() < contents.unread.total():
            members = _with_dots(members, _dotted_texts(file)) if not contents.faults else members
        for key, group in _group(members).items():
            found, left_out = _read_sample(file, f"{tar}/{key}", group, blob)
            items += found
            unread += left_out
    return [*items, *(_fault_item(tar, number, fault) for number, fault in enumerate(contents.faults))], unread


def _fault_item(tar: str, number: int, fault: Fault) -> Item:
    return Item(name=f"{tar}/{fault.name}" if fault.name else f"{tar}, fault {number + 1}", problem=fault.reason)


def _dotted_texts(file: BinaryIO) -> list[Member]:
    """Texts whose names have further dots, of a tar in which nothing is wrong."""
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        named = [(*split_name(info.name), info) for info in tar if info.isreg() and not info.issparse()]
    return [
        Member(key, extension, info.offset_data, info.size)
        for key, extension, info in named
        if extension.rpartition(".")[2] in TEXT_EXTENSIONS and "." in extension and ".." not in info.name.split("/")
    ]


def _with_dots(members: list[Member], texts: list[Member]) -> list[Member]:
    """Members in tar order, keyed by all before the last dot where a text is: photo.v1.png is of photo.v1.txt."""
    dotted = {f"{text.key}.{text.extension.rpartition('.')[0]}" for text in texts}

    def rekey(member: Member) -> Member:
        stem, _, kind = member.extension.rpartition(".")
        key = f"{member.key}.{stem}"
        return Member(key, kind, member.offset, member.size) if stem and key in dotted else member

    return sorted({rekey(member) for member in [*members, *texts]}, key=lambda member: member.offset)


def _group(members: Iterable[Member]) -> dict[str, dict[str, Member]]:
    found: dict[str, dict[str, Member]] = {}
    for member in members:
        found.setdefault(member.key, {})[member.extension] = member
    return found


def _read_sample(file: BinaryIO, name: str, members: dict[str, Member], tar: Blob) -> tuple[list[Item], Counter[str]]:
    """The items of one key, and what of it is not read."""
    texts: dict[str, str] = {}
    try:
        for extension in TEXT_EXTENSIONS:
            if extension in members:
                texts[extension] = _text_of(file, members[extension], extension)
        value = read_json(texts["json"], "its .json") if "json" in texts else None
        sample = _Sample(name, members, tar, texts, value)
        if isinstance(value, dict) and (any(shape in value for shape in TURNS) or value.keys() >= QUESTION):
            return [_document(sample)], Counter()
        return _pairs(sample)
    except ValueError as error:
        return [Item(name=name, problem=str(error))], Counter()


def _text_of(file: BinaryIO, member: Member, extension: str) -> str:
    limit = MAX_CAPTION_BYTES if extension == "txt" else MAX_PAGE_BYTES
    if member.size > limit:
        raise ValueError(f"its .{extension} is too large for a text; split or remove it ({member.size:,} bytes)")
    file.seek(member.offset)
    return decode_text(file.read(member.size))


def _document(sample: _Sample) -> Item:
    """What stands in `segments`, `messages` or `conversations`, or a question with its answer."""
    from oneflow_dist.containers import ShardRecord  # these load torch
    from oneflow_dist.data.decoding import read_segments

    pictures = {extension: _blob(sample, extension) for extension in _pictures(sample)}
    record = ShardRecord(key=sample.name, files=dict.fromkeys(pictures, b""))
    segments = read_segments(record, sample.value)
    by_name = {extension.rpartition(".")[0]: blob for extension, blob in pictures.items()}
    left_out = {*TURNS, *QUESTION, "image"}
    fields = split_of(sample.tar.name) | {key: value for key, value in sample.value.items() if key not in left_out}
    if is_conversation(sample.value, segments):
        return Item(name=sample.name, turns=turns_of(segments, by_name), fields=fields)
    return Item(name=sample.name, parts=parts_of(segments, by_name), fields=fields)


def _pairs(sample: _Sample) -> tuple[list[Item], Counter[str]]:
    """Its picture with its captions. Beside one whose name is the key alone, masks and the like are not read."""
    pictures = _pictures(sample)
    chosen = [extension for extension in pictures if "." not in extension] or pictures
    unread = Counter(extension for extension in sample.members if extension not in (*chosen, *TEXT_EXTENSIONS))
    captions, fields = _captions(sample)
    fields = split_of(sample.tar.name) | fields
    if not chosen:
        is_text = "txt" in sample.texts and captions
        items = [Item(name=sample.name, parts=captions[:1], fields=fields)] if is_text else []
        return items, unread + Counter({"json": int("json" in sample.texts and not items)})
    if len(chosen) > 1 and "." in chosen[0]:
        named = ", ".join(chosen)
        raise ValueError(f"several pictures, but no .json with segments for their order; write one ({named})")
    return [
        Item(name=f"{sample.name}.{extension}", parts=(_blob(sample, extension),), captions=captions, fields=fields)
        for extension in chosen
    ], unread


def _captions(sample: _Sample) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Of the .txt; where there is none, of the .json."""
    caption, _ = read_caption(sample.texts.get("txt", ""))
    return merge_captions([caption] if caption else [], sample.value)


def _pictures(sample: _Sample) -> list[str]:
    return [extension for extension in sample.members if extension.rpartition(".")[2] in IMAGE_EXTENSIONS]


def _blob(sample: _Sample, extension: str) -> Blob:
    member = sample.members[extension]
    return Blob(name=f"{sample.name}.{extension}", path=sample.tar.path, offset=member.offset, length=member.size)
