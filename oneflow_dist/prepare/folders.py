"""What lies in a folder, listed once, and how the paths in somebody's tables and pages find it there."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from oneflow_dist.prepare.items import Blob

# What is taken for a picture. Whether its bytes can be read is seen when it is decoded.
PICTURES = {"png", "apng", "jpg", "jpeg", "jpe", "jfif", "webp", "gif", "bmp", "dib", "tif", "tiff"}
PICTURES |= {"avif", "heic", "heif"}
SPLITS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation"}
SPLITS |= {"val": "validation", "dev": "validation", "test": "test", "testing": "test"}
HIDDEN = "hidden"  # how files are counted whose names begin with a dot, and folders that no user has made
SYSTEM_FOLDERS = {"__MACOSX", "@eaDir"}
OUTSIDE = "leads out of the folder, where nothing is read; copy the file into it and write its path from there"
REMOTE = re.compile(r"[a-z][a-z0-9+.-]+://|//|mailto:", re.IGNORECASE)  # a single letter is a drive of Windows
DRIVE = re.compile(r"[A-Za-z]:/")


class Folder:
    """All files of a folder and those below it, by their paths from it: "birds/owl.png".

    Nothing else is ever read: a path that somebody has written is only looked up among these.
    """

    def __init__(self, root: Path):
        self.root = root.resolve()
        self.files: list[str] = []  # sorted
        self.outside: set[str] = set()  # of these: links that lead out of the folder, or nowhere
        self.unreadable: Counter[str] = Counter()  # what is no file of the user's, by what it is
        self._list()
        self.files.sort()
        self._known = frozenset(self.files)

    def extensions(self) -> Counter[str]:
        """How many files there are of each extension."""
        return Counter({extension: len(files) for extension, files in self._by_extension.items()})

    def with_extension(self, *extensions: str) -> list[str]:
        """The files of some kinds, sorted."""
        return sorted(file for extension in extensions for file in self._by_extension.get(extension, ()))

    @cached_property
    def pictures(self) -> list[str]:
        """The files that are called as pictures are, sorted."""
        return self.with_extension(*PICTURES)

    def unread(self, used: Collection[str]) -> Counter[str]:
        """The files, by extension, that are none of `used`; and what is no file to read."""
        files = self._by_extension.items()
        counts = {extension: sum(file not in used for file in of_kind) for extension, of_kind in files}
        return Counter(counts) + self.unreadable

    def blob(self, file: str) -> Blob:
        """The content of a file."""
        return Blob(name=file, path=self.root / file)

    def problem(self, file: str) -> str | None:
        """Why a file is not read, whatever is in it."""
        if file in self.outside:
            return f"it is a link that {OUTSIDE}"
        if not _is_unicode(file):
            return "its name is not UTF-8; rename it"
        return None

    def find(self, reference: str, *bases: str) -> str:
        """The file that a table or page means by `reference`.

        Tried are the reference as it is and with its %20 and the like decoded, from each of `bases` and from the
        folder itself; then whether just one file ends with it.

        Args:
            bases: folders it may be written from, "" the folder itself.

        Raises:
            ValueError: there is none, it is an address, it leaves the folder, or it fits several.
        """
        if is_remote(reference):
            raise ValueError(
                f"its picture is an address; nothing is fetched: store it in the folder ({reference!r:.200})"
            )
        spellings = self._spell(reference)
        for base in dict.fromkeys([*bases, ""]):
            for spelling in spellings:
                found = self._look_up(_join(base, spelling))
                if found is not None:
                    return self._checked(found, reference)
        if all(_join(base, spelling) is None for base in [*bases, ""] for spelling in spellings):
            raise ValueError(f"its picture {OUTSIDE} ({reference!r:.200})")
        return self._checked(self._find_end(reference, spellings), reference)

    def _list(self) -> None:
        waiting = [""]
        while waiting:
            folder = waiting.pop()
            with os.scandir(self.root / folder) as entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.name.startswith(".") or entry.name in SYSTEM_FOLDERS:
                        self.unreadable[HIDDEN] += 1
                    elif entry.is_dir(follow_symlinks=False):
                        waiting.append(path)
                    elif entry.is_symlink():
                        self._add_link(path, Path(entry.path))
                    elif entry.is_file(follow_symlinks=False):
                        self.files.append(path)
                    else:
                        self.unreadable["pipe or device"] += 1

    def _add_link(self, path: str, link: Path) -> None:
        if link.is_dir():  # it may lead to a folder above it
            self.unreadable["link to a folder"] += 1
            return
        self.files.append(path)
        target = Path(os.path.realpath(link))
        if not target.is_relative_to(self.root) or not target.is_file():
            self.outside.add(path)

    def _spell(self, reference: str) -> list[str]:
        """How the path may be meant: with slashes, from this folder, without the query of an address, decoded."""
        path = reference.strip().replace("\\", "/").removeprefix("file://")
        own = f"{self.root.as_posix()}/"
        path = path.removeprefix(own) if path.startswith(own) else path
        bare = re.split(r"[?#]", path)[0]
        return list(dict.fromkeys([path, unquote(path), bare, unquote(bare)]))

    def _look_up(self, path: str | None) -> str | None:
        if not path:
            return None
        return path if path in self._known else self._composed.get(unicodedata.normalize("NFC", path))

    def _find_end(self, reference: str, spellings: list[str]) -> str:
        """The one file whose path ends with the reference.

        Raises:
            ValueError: there is none, or there are several; names a file that is spelled nearly so.
        """
        inside = [path for spelling in spellings if (path := _join("", spelling))]
        ends = {unicodedata.normalize("NFC", path) for path in inside}
        near = [file for end in sorted(ends) for file in self._by_name.get(_fold(end), ())]
        found = [file for file in near if any(f"/{unicodedata.normalize('NFC', file)}".endswith(f"/{e}") for e in ends)]
        found = list(dict.fromkeys(found))
        if len(found) == 1:
            return found[0]
        if found:
            where = ", ".join(map(printable, found[:2]))
            raise ValueError(f"its picture is in several folders; write which ({reference!r:.200}: {where})")
        hint = f"; {printable(near[0])} is near: rename one of them" if near else ""
        raise ValueError(f"its picture does not exist ({reference!r:.200}{hint})")

    def _checked(self, file: str, reference: str) -> str:
        if file in self.outside:
            raise ValueError(f"its picture is a link that {OUTSIDE} ({reference!r:.200})")
        return file

    @cached_property
    def _by_extension(self) -> dict[str, list[str]]:
        found = defaultdict(list)
        for file in self.files:
            found[extension_of(file)].append(file)
        return found

    @cached_property
    def _composed(self) -> dict[str, str]:
        """Files by their names in NFC: some systems store what others wrote as NFD."""
        return {unicodedata.normalize("NFC", file): file for file in reversed(self.files)}

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        """Files by their last part, whatever its case."""
        found = defaultdict(list)
        for file in self.files:
            found[_fold(file)].append(file)
        return found


def open_folder(path: Path) -> Folder:
    """List a folder.

    Raises:
        ValueError: it does not exist, is a file, or has nothing in it.
    """
    if not path.exists():
        raise ValueError(f"{path}: does not exist; name the folder that holds your pictures and texts")
    if not path.is_dir():
        raise ValueError(f"{path}: a file, not a folder; name the folder that it lies in ({path.parent})")
    folder = Folder(path)
    if not folder.files:
        raise ValueError(f"{path}: an empty folder; put your pictures and texts into it")
    return folder


def extension_of(file: str) -> str:
    """The part after the last dot, in lower case; "" without one."""
    _, dot, extension = file[file.rfind("/") + 1 :].rpartition(".")
    return extension.lower() if dot else ""


def is_picture(file: str) -> bool:
    """Whether a name is that of a picture."""
    return extension_of(file) in PICTURES


def is_remote(reference: str) -> bool:
    """Whether a reference is an address, of another machine or protocol."""
    return REMOTE.match(reference.strip()) is not None and not reference.strip().lower().startswith("file:")


def parent_of(file: str) -> str:
    """The folder that a file lies in, "" the folder that was listed."""
    return file.rpartition("/")[0]


def split_of(file: str) -> dict[str, str]:
    """The field `split` of what lies in a folder called train, validation or test, or in a file such as train-0.tar."""
    *folders, name = file.lower().split("/")
    words = [*folders, re.split(r"[-_.]", name)[0] if not is_picture(name) else ""]
    found = next((SPLITS[word] for word in words if word in SPLITS), None)
    return {} if found is None else {"split": found}


def printable(name: str) -> str:
    """A name with escapes for bytes that are not UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


def _is_unicode(name: str) -> bool:
    return name.isascii() or printable(name) == name


def _fold(path: str) -> str:
    return unicodedata.normalize("NFC", path.rpartition("/")[2]).casefold()


def _join(base: str, path: str) -> str | None:
    """A path from the folder, without . and ..; None where it leaves the folder."""
    if path.startswith("/") or DRIVE.match(path):
        return None
    parts: list[str] = []
    for part in f"{base}/{path}".split("/"):
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)
