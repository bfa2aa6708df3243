"""Pictures in folders, with their captions in files of the same name beside them."""

from __future__ import annotations

import unicodedata
from collections import Counter
from typing import Any

from oneflow_dist.prepare.captions import merge_captions, read_caption, words_of_file, words_of_folder
from oneflow_dist.prepare.folders import Folder, extension_of, is_picture, printable, split_of
from oneflow_dist.prepare.items import Item, Source
from oneflow_dist.prepare.text_files import MAX_CAPTION_BYTES, read_json, read_text

TEXTS = ("txt", "caption")  # each a caption
BESIDE = (*TEXTS, "json")
TRANSLATIONS = "translations"  # how lines of a caption are counted that only say it in another language


def has_captions_beside(folder: Folder) -> bool:
    """Whether at least one picture has a file of text of its name."""
    texts = _texts_by_name(folder)
    return any(_texts_of(file, texts) for file in folder.pictures)


def read_pictures(folder: Folder, captions: str) -> Source:
    """Every picture, with what is said beside it; without that it is a picture alone.

    Args:
        captions: "files" or "folders": pictures without a caption are called as their file or folder.
    """
    texts = _texts_by_name(folder)
    used, translations = set[str](), 0
    items = []
    for file in folder.pictures:
        beside = _texts_of(file, texts)
        used |= {file, *beside.values()}
        item, left_out = _read_item(folder, file, beside, captions)
        translations += left_out
        items.append(item)
    items += _misnamed(folder, used)
    found = sorted({extension_of(file) for file in used if not is_picture(file)})
    kind = f"pictures with {', '.join(f'.{extension}' for extension in found)} beside them" if found else "pictures"
    unread = folder.unread({*used, *(item.name for item in items)})
    return Source(kind=kind, items=items, unread=unread + Counter({TRANSLATIONS: translations}))


def _read_item(folder: Folder, file: str, beside: dict[str, str], how: str) -> tuple[Item, int]:
    """A picture with its captions, and how many translations of them were left out."""
    if (problem := folder.problem(file)) is not None:
        return Item(name=printable(file), problem=problem), 0
    try:
        captions, fields, translations = _read_beside(folder, beside)
    except ValueError as error:
        return Item(name=file, parts=(folder.blob(file),), problem=str(error)), 0
    if not captions and how != "beside":
        captions = tuple(filter(None, [words_of_file(file) if how == "files" else words_of_folder(file)]))
    fields = split_of(file) | fields
    return Item(name=file, parts=(folder.blob(file),), captions=captions, fields=fields), translations


def _read_beside(folder: Folder, beside: dict[str, str]) -> tuple[tuple[str, ...], dict[str, Any], int]:
    """Captions, other fields, and the number of translations. A .json has the caption where no text has it."""
    captions, translations = [], 0
    for extension, text_file in beside.items():
        if (problem := folder.problem(text_file)) is not None:
            raise ValueError(f"its caption is not read ({printable(text_file)}: {problem})")
        if extension in TEXTS:
            caption, left_out = read_caption(read_text(folder.root / text_file, MAX_CAPTION_BYTES))
            captions += [caption] if caption else []
            translations += left_out
    value = None
    if "json" in beside:
        value = read_json(read_text(folder.root / beside["json"], MAX_CAPTION_BYTES), "its .json")
    return *merge_captions(captions, value), translations


def _texts_by_name(folder: Folder) -> dict[str, dict[str, str]]:
    """Files of text by the name they share with a picture, then by extension."""
    found: dict[str, dict[str, str]] = {}
    for extension in BESIDE:
        for file in folder.with_extension(extension):
            found.setdefault(_name(file), {}).setdefault(extension, file)
    return found


def _texts_of(picture: str, texts: dict[str, dict[str, str]]) -> dict[str, str]:
    """Files that tell of a picture, by extension: owl.txt of owl.png, or owl.png.txt."""
    return texts.get(_name(picture), {}) | texts.get(unicodedata.normalize("NFC", picture), {})


def _name(file: str) -> str:
    return unicodedata.normalize("NFC", file.rpartition(".")[0])


def _misnamed(folder: Folder, used: set[str]) -> list[Item]:
    """Texts without a picture whose names differ from a picture's only in their case: they were meant for it."""
    pictures = {_name(file).casefold(): file for file in used if is_picture(file)}
    lost = [file for file in folder.with_extension(*TEXTS) if file not in used]
    return [
        Item(name=file, problem=f"no picture has this name, but one nearly has; rename one of them ({near})")
        for file in lost
        if (near := pictures.get(_name(file).casefold())) is not None and folder.problem(file) is None
    ]
