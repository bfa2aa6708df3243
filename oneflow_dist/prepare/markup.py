"""What a person reads of a page, in order: paragraphs and pictures, without what stands on every page of a site."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from oneflow_dist.prepare.packages import need
from oneflow_dist.prepare.text_files import MARKS, decode_text

LEFT_OUT = {"script", "style", "nav", "noscript", "template", "form", "button", "select", "textarea", "iframe", "aside"}
LEFT_OUT |= {"object", "svg", "math", "audio", "video", "canvas", "head", "title", "dialog"}
OF_SITES = {"header", "footer"}  # left out unless they are of an article
ARTICLES = {"article", "main", "section", "figure"}
BLOCKS = {
    "p",
    "div",
    "h1",
    "h2",
    "h3",
    "h4",
    "h5",
    "h6",
    "ul",
    "ol",
    "li",
    "dl",
    "dt",
    "dd",
    "table",
    "tr",
    "blockquote",
}
BLOCKS |= {"pre", "figure", "figcaption", "hr", "address", "caption", "details", "summary", "body", "header", "footer"}
BLOCKS |= {"blockquote", *ARTICLES}
CELLS = {"td", "th"}
LISTS = {"ul", "ol", "table"}  # each item or row is a line
FRONT_MATTER = re.compile(r"---\n.*?\n(---|\.\.\.)\n", re.DOTALL)  # of Markdown: settings of a site, no text
# What a declared encoding means to browsers, "" that the bytes tell: in UTF-16 nobody could read the declaration.
MEANT = dict.fromkeys(("iso-8859-1", "latin-1", "latin1", "ascii", "us-ascii"), "cp1252")
MEANT |= dict.fromkeys(("utf-16", "utf-16le", "utf-16be", "utf-8"), "")
MAX_NESTING = 100  # of Markdown


class PictureTag(NamedTuple):
    """An <img> as it is written."""

    source: str
    alt: str  # "" where a <figcaption> says it, or nothing does
    width: float | None  # as declared, pixels
    height: float | None


def page_of_html(content: bytes) -> Any:
    """HTML, in the encoding of its byte order mark or of its <meta>, as a `bs4.BeautifulSoup`."""
    soup = need("bs4")
    declared = need("bs4.dammit").EncodingDetector.find_declared_encoding(content, is_html=True) or ""
    encoding = MEANT.get(declared.lower(), declared)
    if encoding and not any(content.startswith(mark) for mark in MARKS):
        try:
            return soup.BeautifulSoup(content.decode(encoding), "html.parser")
        except (LookupError, UnicodeError):  # declared wrongly: what the bytes are tells
            pass
    return soup.BeautifulSoup(decode_text(content), "html.parser")


def page_of_markdown(text: str) -> Any:
    """Markdown by way of the HTML that it stands for."""
    text = text.replace("\r\n", "\n")
    front = FRONT_MATTER.match(text)
    parser = need("markdown_it").MarkdownIt("commonmark", {"html": True, "maxNesting": MAX_NESTING}).enable("table")
    html = parser.render(text[front.end() :] if front else text)
    return need("bs4").BeautifulSoup(html, "html.parser")


def decode_data(address: str) -> bytes:
    """The bytes of a data: address.

    Raises:
        ValueError: it is broken, or of no picture.
    """
    head, comma, content = address.partition(",")
    kind, *options = head[5:].split(";")
    if not comma or not kind.strip().lower().startswith("image/"):
        raise ValueError(f"its data: address is of no picture ({head[:60]!r}); store the picture in a file")
    raw = unquote_to_bytes(content)
    if not any(option.strip().lower() == "base64" for option in options):
        return raw
    try:
        return base64.b64decode(re.sub(rb"\s", b"", raw), validate=True)
    except binascii.Error as error:
        raise ValueError(f"its data: address is broken ({error}); store the picture in a file") from error


class PageReader:
    """Walks through a page once; `parts` are what it has read."""

    def __init__(self, soup: Any):
        self.parts: list[str | PictureTag] = []
        self._line: list[str] = []  # of the paragraph that is being read
        self._preformatted = 0
        self._mark: str | None = None  # what the next paragraph, a line of a list or table, begins with: "- "
        self._figures: list[bool] = []  # whether those that are being read have a caption
        self._numbers: dict[int, int] = {}  # of the next item of each numbered list
        self._lines: Any = None  # the outermost list or table that is being read
        self._last_lines: Any = None  # the one whose line the last part ends with
        self._tag, self._text = need("bs4").Tag, need("bs4").NavigableString
        if not soup.find("h1") and (title := soup.find("title")) is not None:
            self._add(title.get_text())
            self._end()
        self._walk(soup)
        self._end()

    def _walk(self, root: Any) -> None:
        """Each node in order, and each block again when it ends; without recursion, as pages may nest deep."""
        waiting: list[tuple[Any, bool]] = [(root, False)]
        while waiting:
            node, is_end = waiting.pop()
            if is_end:
                self._leave(node)
            elif isinstance(node, self._tag):
                if not _is_left_out(node):
                    self._enter(node)
                    waiting.append((node, True))
                    waiting += [(child, False) for child in reversed(node.contents)]
            elif type(node) is self._text:  # comments and the like are of other types
                self._add(str(node))

    def _enter(self, tag: Any) -> None:
        if tag.name in BLOCKS:
            self._end()
        if tag.name in LISTS and self._lines is None:
            self._lines = tag
        if tag.name in ("li", "tr"):
            self._mark = self._mark_of(tag)
        elif tag.name == "figure":
            self._figures.append(_has_caption(tag))
        elif tag.name == "pre":
            self._preformatted += 1
        elif tag.name == "br":
            self._line.append("\n")
        elif tag.name in CELLS and "".join(self._line).strip():
            self._line.append(" | ")
        elif tag.name == "img":
            self._end()
            self.parts.append(_read_picture(tag, has_caption=any(self._figures[-1:])))
            self._last_lines = None

    def _mark_of(self, tag: Any) -> str:
        """What stands before an item of a list: a dash, or its number; before a row of a table nothing."""
        if tag.name == "tr":
            return ""
        if tag.parent.name != "ol":
            return "- "
        start = str(tag.parent.get("start", "1"))
        number = self._numbers.get(id(tag.parent), int(start) if re.fullmatch("[0-9]{1,9}", start) else 1)
        self._numbers[id(tag.parent)] = number + 1
        return f"{number}. "

    def _leave(self, tag: Any) -> None:
        if tag.name in BLOCKS:
            self._end()
        if tag is self._lines:
            self._lines = None
        if tag.name in ("li", "tr"):
            self._mark = None
        elif tag.name == "figure":
            self._figures.pop()
        elif tag.name == "pre":
            self._preformatted -= 1

    def _add(self, text: str) -> None:
        if self._preformatted:
            self._line.append(text)
        elif text:
            blank = " " if text[:1].isspace() else ""
            words = " ".join(text.split())
            self._line.append(f"{blank}{words}{' ' if words and text[-1:].isspace() else ''}")

    def _end(self) -> None:
        """The paragraph is over."""
        text = "".join(self._line)
        if not self._preformatted:
            text = "\n".join(" ".join(line.split()) for line in text.split("\n"))
        text = text.strip("\n").rstrip() if self._preformatted else text.strip()
        self._line = []
        if not text.strip():
            return
        lines = self._lines if self._mark is not None else None
        text, self._mark = f"{self._mark or ''}{text}", None
        if lines is not None and lines is self._last_lines:
            self.parts[-1] = f"{self.parts[-1]}\n{text}"
        else:
            self.parts.append(text)
        self._last_lines = lines


def _is_left_out(tag: Any) -> bool:
    if tag.name in LEFT_OUT or tag.has_attr("hidden") or tag.get("aria-hidden") == "true":
        return True
    return tag.name in OF_SITES and not any(parent.name in ARTICLES for parent in tag.parents)


def _has_caption(figure: Any) -> bool:
    caption = figure.find("figcaption")
    return caption is not None and caption.get_text().strip() != ""


def _read_picture(tag: Any, has_caption: bool) -> PictureTag:
    alt = "" if has_caption else " ".join(str(tag.get("alt", "")).split())
    source = tag.get("src") or tag.get("data-src") or ""
    return PictureTag(str(source), alt, _pixels(tag.get("width")), _pixels(tag.get("height")))


def _pixels(value: Any) -> float | None:
    """A declared side; None where there is none, or it is a share of the page."""
    match = re.fullmatch(r"\s*(\d+(\.\d+)?)\s*(px)?\s*", str(value or ""))
    return float(match[1]) if match else None
