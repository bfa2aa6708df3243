"""One .json that tells of many pictures: COCO's captions, LLaVA's conversations."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

from oneflow_dist.prepare.captions import join_captions, list_texts
from oneflow_dist.prepare.folders import SPLITS, Folder, parent_of, split_of
from oneflow_dist.prepare.items import Blob, Item, Source
from oneflow_dist.prepare.rows import files_of
from oneflow_dist.prepare.text_files import MAX_TABLE_BYTES, decode_text, read_json, read_text
from oneflow_dist.prepare.turns import CONVERSATIONS, read_conversation

LOOK_BYTES = 1 << 16
CAPTIONS = re.compile(r"captions_(.+)\.json")  # COCO's: captions_train2017.json, with pictures in train2017
SPLIT = re.compile("train|val|test")
SCALARS = (str, int, float, bool)


def coco_files(folder: Folder) -> list[str]:
    """Annotations of captions by their name, and without these all that look like annotations."""
    files = _json_files(folder)
    named = [file for file in files if CAPTIONS.fullmatch(file.rpartition("/")[2])]
    return named or [
        file for file in files if _starts_with(folder, file, "{", '"annotations"', '"images"', '"caption"')
    ]


def llava_files(folder: Folder) -> list[str]:
    """Lists of conversations, as one .json or with one in a line."""
    lists = [file for file in _json_files(folder) if _starts_with(folder, file, "[", f'"{CONVERSATIONS}"')]
    lines = folder.with_extension("jsonl")
    return lists + [file for file in lines if _starts_with(folder, file, "{", f'"{CONVERSATIONS}"')]


def read_coco(folder: Folder) -> Source:
    """Pictures with all their captions, sorted by the file.

    Raises:
        ValueError: a file is no such annotation.
    """
    files = coco_files(folder)
    if not files:
        raise ValueError(f"{folder.root}: no captions_*.json; COCO's are in annotations/captions_train2017.json")
    items = [item for file in files for item in _coco_items(folder, file)]
    return Source(kind="COCO captions", items=items, unread=folder.unread(files_of(items) | set(files)))


def read_llava(folder: Folder) -> Source:
    """Conversations, each with the pictures it is about, in the order of the file.

    Raises:
        ValueError: a file is no list of such.
    """
    files = llava_files(folder)
    if not files:
        raise ValueError(f'{folder.root}: no .json that is a list of {{"image": ..., "{CONVERSATIONS}": [...]}}')
    items = [
        _conversation(folder, file, number, entry)
        for file in files
        for number, entry in enumerate(_entries(folder, file), start=1)
    ]
    used = {part.name for item in items for _, parts in item.turns for part in parts if isinstance(part, Blob)}
    return Source(kind="conversations as LLaVA has them", items=items, unread=folder.unread(used | set(files)))


def _json_files(folder: Folder) -> list[str]:
    """Those that do not only tell of the picture beside them."""
    beside = {file.rpartition(".")[0] for file in folder.pictures}
    files = [file for file in folder.with_extension("json") if file.rpartition(".")[0] not in beside]
    return [file for file in files if folder.problem(file) is None]


def _starts_with(folder: Folder, file: str, bracket: str, *keys: str) -> bool:
    """Whether a file begins as such JSON does, with one of `keys` soon after."""
    with (folder.root / file).open("rb") as opened:
        start = decode_text(opened.read(LOOK_BYTES)).lstrip()
    return start.startswith(bracket) and any(key in start for key in keys)


def _coco_items(folder: Folder, file: str) -> list[Item]:
    value = read_json(read_text(folder.root / file, MAX_TABLE_BYTES), file)
    images, annotations = _list_in(file, value, "images"), _list_in(file, value, "annotations")
    captions: dict[str, list[str]] = {}
    for entry in annotations:
        captions.setdefault(str(entry.get("image_id")), []).extend(list_texts(entry.get("caption")))
    if not any(captions.values()):
        raise ValueError(f"{file}: none of its {len(annotations)} annotations has a caption; take captions_*.json")
    named = CAPTIONS.fullmatch(file.rpartition("/")[2])
    subset = named[1] if named else ""
    items = [_coco_item(folder, file, subset, entry, captions) for entry in images]
    return sorted(items, key=lambda item: item.name)


def _coco_item(folder: Folder, file: str, subset: str, entry: dict[str, Any], captions: dict[str, list[str]]) -> Item:
    name, number = entry.get("file_name"), entry.get("id")
    missing = f"{file}, image {number}"
    if not isinstance(name, str):
        return Item(name=missing, problem="it has no file_name; write one")
    try:
        found = folder.find(name, subset, f"images/{subset}", "images", parent_of(file))
    except ValueError as error:
        return Item(name=missing, problem=str(error))
    split = SPLIT.match(subset)
    fields = {"id": number} | ({"split": SPLITS[split[0]]} if split else split_of(found))
    said = join_captions(captions.get(str(number), []))
    return Item(name=found, parts=(folder.blob(found),), captions=said, fields=fields)


def _entries(folder: Folder, file: str) -> Iterator[Any]:
    text = read_text(folder.root / file, MAX_TABLE_BYTES)
    if file.lower().endswith(".json"):
        value = read_json(text, file)
        if not isinstance(value, list):
            raise ValueError(f"{file} holds no list; write one of conversations")
        yield from value
        return
    for number, line in enumerate(io.StringIO(text), start=1):
        if line.strip():
            yield read_json(line, f"{file}, line {number},")


def _conversation(folder: Folder, file: str, number: int, entry: Any) -> Item:
    name = f"{file}:{number}"
    if not isinstance(entry, dict) or CONVERSATIONS not in entry:
        return Item(name=name, problem=f"it is no object with {CONVERSATIONS}; write one")
    fields = {key: value for key, value in entry.items() if key != "image" and isinstance(value, SCALARS)}
    try:
        blobs = _pictures_of(folder, file, entry.get("image"))
        turns = read_conversation(entry, blobs)
    except ValueError as error:
        return Item(name=name, fields=fields, problem=str(error))
    return Item(name=name, turns=turns, fields=split_of(file) | fields)


def _pictures_of(folder: Folder, file: str, image: Any) -> list[Blob]:
    references = [] if image is None else image if isinstance(image, list) else [image]
    if not all(isinstance(each, str) for each in references):
        raise ValueError(f"its image is {image!r:.80}, neither a path nor a list of them; write it again")
    return [folder.blob(folder.find(each, parent_of(file), "images")) for each in references]


def _list_in(file: str, value: Any, key: str) -> list[dict[str, Any]]:
    found = value.get(key) if isinstance(value, dict) else None
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise ValueError(f"{file} has no list of {key}; COCO's captions have images and annotations")
    return found
