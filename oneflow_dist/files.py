"""Files that are either whole or absent, whoever writes them and whenever he is killed."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO


class Claim:
    """The right to write one file: `path + ".partial"`, locked, renamed to `path` by `commit`.

    The lock lives as long as this process, so a dead one's work is free at once; what it left is overwritten.
    """

    def __init__(self, path: Path, partial: Path, file: BinaryIO):
        self.path = path
        self.partial = partial
        self.file = file

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.file.close()

    def commit(self) -> None:
        """Give the file its name; from here on it survives a power cut."""
        with naming(self.partial):
            self.file.flush()
            os.fsync(self.file.fileno())
        self.partial.rename(self.path)
        sync_folder(self.path.parent)

    def abandon(self) -> None:
        """Leave nothing behind, and the file to others."""
        self.partial.unlink(missing_ok=True)
        with suppress(OSError):  # on a full disk the rest of its buffer cannot be written, and nobody wants it
            self.file.close()


def claim(path: Path, wait: bool = False, is_done: Callable[[Path], bool] = Path.exists) -> Claim | None:
    """Claim `path`, unless it is done.

    Args:
        wait: for another process that has claimed it, to take over if that one dies.
        is_done: whether there is nothing left to write; a file that is there and not done is replaced.

    Returns:
        None when the file is done, or another process has claimed it.
    """
    partial = _partial(path)
    while not is_done(path):
        file = _open_partial(partial)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            file.close()
            return None
        if is_done(path):  # committed between our look and our lock; what we have opened may be that very file
            if _is_named(file, partial):
                partial.unlink()
        elif _is_named(file, partial):
            file.truncate(0)
            return Claim(path, partial, file)
        file.close()
    return None


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, or replace it, in one instant."""
    while True:
        with _open_partial(_partial(path)) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_named(file, _partial(path)):  # not so where another process has just written it
                file.truncate(0)
                with naming(path):
                    file.write(content)
                Claim(path, _partial(path), file).commit()
                return


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Inside, an error of the system that names no file gets this one: a write to an open file does not know it."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def describe_os_error(error: OSError) -> str:
    """One line with the file, and what is left on its disk where that is the matter."""
    if error.errno == errno.EROFS:
        return f"{error.filename}: {error.strerror}; mount it for writing, or name another folder"
    if error.errno not in (errno.ENOSPC, errno.EDQUOT) or error.filename is None:
        return str(error)
    folder = folder_there(Path(error.filename).absolute().parent)
    usage = shutil.disk_usage(folder)
    return (
        f"{error.filename}: {error.strerror}: the disk of {folder} has {usage.free / 2**20:.1f} of "
        f"{usage.total / 2**20:.1f} MiB left; make room and run the same command again"
    )


def folder_there(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def free_bytes(path: Path) -> int:
    """Of the disk that it lies on, or will lie on."""
    return shutil.disk_usage(folder_there(path)).free


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def _open_partial(partial: Path) -> BinaryIO:
    return os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o644), "r+b")


def _is_named(file: BinaryIO, path: Path) -> bool:
    """Whether `path` still names the opened file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False
