"""Pages of HTML and Markdown become documents: texts and pictures in reading order."""

from __future__ import annotations

import re
from collections import Counter

from oneflow_dist.prepare.folders import Folder, extension_of, is_remote, parent_of, printable, split_of
from oneflow_dist.prepare.items import Blob, Item, Source
from oneflow_dist.prepare.markup import PageReader, PictureTag, decode_data, page_of_html, page_of_markdown
from oneflow_dist.prepare.text_files import MAX_PAGE_BYTES, decode_text, read_bytes

MARKDOWN, HTML = ("md", "markdown"), ("html", "htm", "xhtml")
ABOUT = re.compile(r"(readme|licen[sc]e|copying|changelog|contributing|notice|authors)\b.*", re.IGNORECASE)
TINY = 16  # pixels: what is declared to be less wide or high is an icon
TINY_PICTURES = "tiny picture"  # how these are counted
VECTORS = ("svg", "svgz")


def pages_of(folder: Folder) -> list[str]:
    """All pages but those that tell about the folder itself, where there are others."""
    pages = folder.with_extension(*MARKDOWN, *HTML)
    return [page for page in pages if not ABOUT.fullmatch(page.rpartition("/")[2])]


def read_pages(folder: Folder) -> Source:
    """A document of each page, and an item with a problem for each of its pictures that cannot be shown.

    Raises:
        ValueError: there is no page.
    """
    pages = pages_of(folder) or folder.with_extension(*MARKDOWN, *HTML)
    if not pages:
        raise ValueError(f"{folder.root}: no .html or .md in it")
    items: list[Item] = []
    used, unread = set(pages), Counter[str]()
    for page in pages:
        reading = _Reading(folder, page)
        items += reading.items()
        used |= reading.used
        unread += reading.unread
    return Source(kind="pages with pictures", items=items, unread=folder.unread(used) + unread)


class _Reading:
    """One page on the way to a document."""

    def __init__(self, folder: Folder, page: str):
        self.folder, self.page = folder, page
        self.used = set[str]()
        self.unread: Counter[str] = Counter()
        self.parts: list[str | Blob] = []
        self.problems: list[Item] = []

    def items(self) -> list[Item]:
        """The document, unless nothing is in it, and the problems of its pictures."""
        try:
            found = self._read()
        except ValueError as error:
            return [Item(name=printable(self.page), problem=str(error))]
        pictures = 0
        for part in found:
            if isinstance(part, str):
                self._add_text(part)
            else:
                pictures += 1
                self._add_picture(part, pictures)
        if not self.parts:
            return [Item(name=self.page, problem="nothing to read is in it; remove it"), *self.problems]
        return [Item(name=self.page, parts=tuple(self.parts), fields=split_of(self.page)), *self.problems]

    def _read(self) -> list[str | PictureTag]:
        if (problem := self.folder.problem(self.page)) is not None:
            raise ValueError(problem)
        content = read_bytes(self.folder.root / self.page, MAX_PAGE_BYTES)
        is_markdown = extension_of(self.page) in MARKDOWN
        soup = page_of_markdown(decode_text(content)) if is_markdown else page_of_html(content)
        return PageReader(soup).parts

    def _add_text(self, text: str) -> None:
        if self.parts and isinstance(self.parts[-1], str):
            self.parts[-1] = f"{self.parts[-1]}\n\n{text}"
        else:
            self.parts.append(text)

    def _add_picture(self, tag: PictureTag, number: int) -> None:
        source = tag.source.strip()
        path = source.split("?")[0].split("#")[0]
        if any(side is not None and side < TINY for side in (tag.width, tag.height)):
            self.unread[TINY_PICTURES] += 1
        elif source[:14].lower() == "data:image/svg" or (extension_of(path) in VECTORS and is_remote(source)):
            self.unread[VECTORS[0]] += 1
        elif extension_of(path) not in VECTORS:  # a file of these is counted as one that nothing reads
            name = f"{self.page}, picture {number}"
            try:
                self.parts.append(self._blob(source, name))
            except ValueError as error:
                self.problems.append(Item(name=name, problem=str(error)))
                return
            if tag.alt:
                self._add_text(tag.alt)

    def _blob(self, source: str, name: str) -> Blob:
        if not source:
            raise ValueError("its <img> has no src; write one")
        if source[:5].lower() == "data:":
            return Blob(name=name, path=self.folder.root / self.page, content=decode_data(source))
        if source.startswith("/") and not source.startswith(("//", f"{self.folder.root}/")):
            source = source[1:]  # from the root of its site, which is the folder
        file = self.folder.find(source, parent_of(self.page))
        self.used.add(file)
        return self.folder.blob(file)
