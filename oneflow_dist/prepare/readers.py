"""Which of the usual layouts a folder has, and what it holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from oneflow_dist.data.tar import describe_unread
from oneflow_dist.prepare.annotations import coco_files, llava_files, read_coco, read_llava
from oneflow_dist.prepare.beside import has_captions_beside, read_pictures
from oneflow_dist.prepare.captions import HOW
from oneflow_dist.prepare.columnar import datasets_of, read_columnar
from oneflow_dist.prepare.folders import Folder, open_folder
from oneflow_dist.prepare.items import Item, Source
from oneflow_dist.prepare.pages import pages_of, read_pages
from oneflow_dist.prepare.tables import metadata_of, read_tables, tables_of
from oneflow_dist.prepare.tars import packed_of, read_tars, tars_of


class Layout(NamedTuple):
    """One way in which people keep pictures and texts."""

    looks_for: str
    fits: Callable[[Folder], object]  # true where it is found
    read: Callable[[Folder], Source]
    holds_pictures: bool = False  # in its own files: loose pictures beside these are another layout


def _read_datasets(folder: Folder) -> Source:
    return read_columnar(folder, datasets_of(folder), "dataset on disk")


def _read_parquet(folder: Folder) -> Source:
    return read_columnar(folder, folder.with_extension("parquet"), "parquet")


def _read_imagefolder(folder: Folder) -> Source:
    return read_tables(folder, metadata_of(folder), "imagefolder")


def _read_table(folder: Folder) -> Source:
    return read_tables(folder, tables_of(folder) or folder.with_extension("csv", "tsv", "jsonl"), "table of pictures")


# Of these at most one may fit. Where none does, any picture makes the folder one of pictures.
LAYOUTS = {
    "datasets": Layout("dataset_info.json or state.json with .arrow files", datasets_of, _read_datasets, True),
    "parquet": Layout(".parquet files", lambda folder: folder.with_extension("parquet"), _read_parquet, True),
    "webdataset": Layout(".tar files", tars_of, read_tars, True),
    "imagefolder": Layout("metadata.csv or metadata.jsonl", metadata_of, _read_imagefolder),
    "coco": Layout("captions_*.json", coco_files, read_coco),
    "llava": Layout("a .json list of conversations", llava_files, read_llava),
    "table": Layout("a .csv, .tsv or .jsonl with columns of pictures and captions", tables_of, _read_table),
    "pages": Layout(".html or .md", pages_of, read_pages),
}
PICTURES = "pictures"
NAMES = (*LAYOUTS, PICTURES)


def open_source(path: Path, layout: str | None = None, captions: str = "beside") -> Source:
    """Find out what a folder holds; nothing is decoded, and only text is read.

    Args:
        layout: one of `NAMES`, where the folder fits several or none.
        captions: of pictures without one: "files" or "folders" makes one of the name. Only of the layout `pictures`.

    Raises:
        ValueError: the folder is empty, fits no layout or several, or one that is broken as a whole.
    """
    if captions not in HOW:
        raise ValueError(f"captions is {captions!r}, not one of {', '.join(HOW)}")
    if layout is not None and layout not in NAMES:
        raise ValueError(f"layout is {layout!r}, not one of {', '.join(NAMES)}")
    folder = open_folder(path)
    layout = layout or find_layout(folder)
    if layout != PICTURES and captions != "beside":
        raise ValueError(f"captions {captions!r}: only for layout {PICTURES}, but {path} is of layout {layout}")
    source = read_pictures(folder, captions) if layout == PICTURES else LAYOUTS[layout].read(folder)
    if not source.items:
        raise ValueError(f"{path}: no picture at all in it as layout {layout}; it has {_describe(folder)}")
    return replace(source, items=_named_apart(source.items))


def find_layout(folder: Folder) -> str:
    """The one layout that a folder has.

    Raises:
        ValueError: none fits, or several.
    """
    fitting = [name for name, layout in LAYOUTS.items() if layout.fits(folder)]
    if folder.pictures and _are_loose(folder, fitting):
        fitting.append(PICTURES)
    if len(fitting) > 1:
        raise ValueError(
            f"{folder.root}: fits the layouts {' and '.join(fitting)}; choose one by --layout {fitting[0]}, "
            "or keep them in folders of their own"
        )
    if fitting:
        return fitting[0]
    if packed := packed_of(folder):
        raise ValueError(f"{folder.root}: {packed[0]} is an archive; unpack it and name the folder it becomes")
    looked_for = "; ".join(f"{layout.looks_for} ({name})" for name, layout in LAYOUTS.items())
    what = f"no picture at all, but {_describe(folder)}"
    raise ValueError(f"{folder.root}: {what}; looked for {looked_for}; pictures ({PICTURES})")


def _are_loose(folder: Folder, fitting: list[str]) -> bool:
    """Whether pictures are of none of the layouts found: these do not name them, and hold their own."""
    if any(LAYOUTS[name].holds_pictures for name in fitting):
        return not any(not LAYOUTS[name].holds_pictures for name in fitting)
    return not fitting or (fitting == ["pages"] and has_captions_beside(folder))


def _describe(folder: Folder) -> str:
    return describe_unread(folder.extensions())


def _named_apart(items: Sequence[Item]) -> list[Item]:
    """Items of which no two have one name."""
    seen: Counter[str] = Counter()
    found = []
    for item in items:
        seen[item.name] += 1
        count = seen[item.name]
        found.append(item if count == 1 else replace(item, name=f"{item.name} ({count})"))
    return found
