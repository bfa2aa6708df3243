"""Which of somebody's fields and names are captions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote

from oneflow_dist.data.conversations import clean
from oneflow_dist.prepare.folders import SPLITS

# Of fields and columns, the most telling first; a number may follow: caption_2.
NAMES = ["caption", "captions", "text", "texts", "description", "title", "prompt"]
NAMES += ["sentence", "sentences", "comment", "alt", "alt_text"]
NUMBERED = re.compile(r"_?\d+$")
TRANSLATION = re.compile(r"[a-z]{2,3}(_[A-Za-z]+)?(@\w+)?\.utf8=")  # Tux Paint's: "de.utf8=Eine Eule."
OF_CAMERAS = {"img", "dsc", "dscn", "dscf", "pxl", "image", "picture", "photo", "screenshot", "untitled", "frame"}
HOW = ("beside", "files", "folders")  # where captions are from: what lies beside; or else names of files or folders


def rank_of(name: str) -> int | None:
    """How telling the name of a field is of a caption, 0 the most; None if it is not."""
    plain = NUMBERED.sub("", re.sub(r"[\s-]+", "_", name.strip().casefold()))
    return NAMES.index(plain) if plain in NAMES else None


def take_captions(fields: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Captions among the fields of one sample, and the other fields.

    The most telling name that holds text is it, or the only field with text there is.
    """
    texts = {name: found for name, value in fields.items() if (found := list_texts(value))}
    named = sorted((rank, name) for name in texts if (rank := rank_of(name)) is not None)
    chosen = [name for rank, name in named if rank == named[0][0]]
    if not named:
        strings = [name for name in texts if isinstance(fields[name], str)]
        chosen = strings if len(strings) == 1 else []
    captions = join_captions(text for name in chosen for text in texts[name])
    return captions, {name: value for name, value in fields.items() if name not in chosen}


def merge_captions(texts: list[str], value: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Captions and other fields of a picture that has texts of its own, or none, and a .json (None: it has not).

    The .json has the caption only where no text has it; then what it says beside stays a field.
    """
    if not isinstance(value, dict):
        return join_captions(texts or list_texts(value)), {}
    said, rest = take_captions(value)
    return (said, rest) if not texts else (join_captions(texts), {k: v for k, v in value.items() if v not in texts})


def list_texts(value: Any) -> list[str]:
    """The texts of a field that holds one or a list of them; those of blanks are none."""
    values = value if isinstance(value, list) else [value]
    return [each.strip() for each in values if isinstance(each, str) and each.strip()]


def join_captions(captions: Iterable[str]) -> tuple[str, ...]:
    """Each once, in their order; half a surrogate pair, which JSON can spell, is U+FFFD."""
    return tuple(dict.fromkeys(map(clean, captions)))


def read_caption(text: str) -> tuple[str, int]:
    """The caption that a file of text is, and how many translations in it are left out."""
    lines = text.strip().splitlines()
    own = [line for line in lines if not TRANSLATION.match(line)]
    return "\n".join(own).strip(), len(lines) - len(own)


def words_of_file(file: str) -> str:
    """A caption out of the name of a file: "birds/red_bird-02.png" is "red bird"; "" where it only counts."""
    return _words(file.rpartition("/")[2].rpartition(".")[0])


def words_of_folder(file: str) -> str:
    """A caption out of the folder that a file lies in: "train/red_bird/02.png" is "red bird"."""
    folders = [folder for folder in file.split("/")[:-1] if folder.lower() not in SPLITS]
    return _words(folders[-1]) if folders else ""


def _words(name: str) -> str:
    words = re.split(r"[\s_\-.,+()]+", unquote(name))
    while words and not any(char.isalpha() for char in words[-1]):
        words.pop()
    is_counted = [word.lower() for word in words if word and not word.isdigit()]
    return "" if set(is_counted) <= OF_CAMERAS else " ".join(word for word in words if word)
