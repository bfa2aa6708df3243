"""Texts as they are found become texts to train on: one form of Unicode, no control characters, plain blanks."""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

from oneflow_dist.data.conversations import clean

MAX_CAPTION = 8000  # characters, about 2000 tokens: what is longer is no caption but the wrong file or column
INVISIBLE = re.compile("[\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]")  # marks no eye sees
# Of Unicode's controls what is left when line ends are "\n"; joiners stay: scripts and emoji are spelled with them.
CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff]")
BLANKS = re.compile(r"[^\S\n]+")
EMPTY_LINES = re.compile(r"\n{3,}")
LINE_ENDS = re.compile("\r\n?|\x0b|\x0c|\x85|\u2028|\u2029")
SCRIPT = re.compile(r"[A-Z]+")
SCRIPTS = {  # how the names of letters begin, and what their writing system is called
    "CJK": "Han",
    "HIRAGANA": "Japanese kana",
    "KATAKANA": "Japanese kana",
    "CANADIAN": "Canadian syllabics",
}


def clean_caption(text: str) -> str:
    """On one line, with entities of HTML as the characters that they are; empty where nothing is left."""
    return " ".join(_clean(html.unescape(text)).split())


def clean_text(text: str) -> str:
    """With its lines, single blanks in them, and no more than one empty line between two."""
    lines = [BLANKS.sub(" ", line).strip() for line in _clean(text).split("\n")]
    return EMPTY_LINES.sub("\n\n", "\n".join(lines)).strip()


def count_scripts(texts: Iterable[str]) -> Counter[str]:
    """Letters by writing system, as the names of Unicode's characters begin: Latin, Greek, Han, ...

    It is what can be counted. Which language a text is in would be a guess of a model that knows some of them.
    """
    characters = Counter[str]()
    for text in texts:
        characters.update(text)
    scripts = Counter[str]()
    for character, count in characters.items():
        if character.isalpha():
            first = SCRIPT.match(unicodedata.name(character, ""))
            name = first.group() if first else "unnamed"
            scripts[SCRIPTS.get(name, name.capitalize())] += count
    return scripts


def cut_text(text: str, most: int) -> list[str]:
    """A text in stretches of at most `most` characters: between paragraphs, else lines, sentences or words."""
    stretches = []
    while len(text) > most:
        end = next(
            (
                place + len(mark)
                for mark in ("\n\n", "\n", ". ", " ")
                if (place := text.rfind(mark, most // 2, most)) > 0
            ),
            most,
        )
        stretches.append(text[:end].strip())
        text = text[end:].strip()
    return [stretch for stretch in (*stretches, text) if stretch]


def _clean(text: str) -> str:
    text = unicodedata.normalize("NFC", LINE_ENDS.sub("\n", clean(text)))
    return CONTROL.sub("", INVISIBLE.sub("", text))
