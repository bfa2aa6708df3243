"""All that an output depends on: what was asked for and what was in the folder; kept, and compared at a later start."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oneflow_dist.data.tokenizer import load_tokenizer
from oneflow_dist.files import write_whole
from oneflow_dist.precompute.crop import CropPolicy
from oneflow_dist.prepare.items import Blob, Source

SETTINGS = "settings.json"
PACKAGES = ("oneflow_dist", "pillow", "tokenizers")
MAX_PATCHES = 16  # along a side of a picture of pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a user asks for."""

    source: Path
    output: Path
    name: str  # of the run
    size: int = 32
    max_aspect: float = 1.0
    autoencoder: str | None = None  # folder; None: pixels are trained on
    tokenizer: str | None = None  # ranks file; None: one is learned
    vocab_size: int | None = None  # of that, special tokens not counted; None: as the texts are many
    held_out: float = 0.05
    drop_duplicates: bool = False
    captions: str = "beside"  # where those of pictures are
    layout: str | None = None
    seed: int = 0
    workers: int = 1

    def policy(self, downsample: int) -> CropPolicy:
        """How pictures are cut, for an autoencoder that makes one element of so many pixels, or none (1)."""
        multiple_of = 2 * downsample if self.autoencoder else self.patch
        return CropPolicy(size=self.size, multiple_of=multiple_of, max_aspect=self.max_aspect)

    @property
    def patch(self) -> int:
        """Pixels along a side of a patch: 4, or more where a picture would be of more than 16 x 16 patches."""
        patch = 4
        while self.size > MAX_PATCHES * patch:
            patch *= 2
        return patch

    def describe(self) -> dict[str, Any]:
        """What of it the bytes of an output depend on."""
        kept = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("output", "workers")}
        return {**kept, "source": str(self.source), "versions": versions()}


def versions() -> dict[str, str]:
    """Of the packages that decide on the bytes."""
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def check_options(options: Options) -> None:
    """Raise ValueError for what cannot work, before anything is read."""
    check_folders(options)
    if not 0 <= options.held_out < 1:
        raise ValueError(f"--held-out: {options.held_out} is no share of the samples; give one below 1, as 0.05")
    if options.workers < 1:
        raise ValueError(f"--workers: {options.workers} must be at least 1")
    if options.vocab_size is not None and options.vocab_size < 256:
        raise ValueError(f"--vocab-size: {options.vocab_size} must be at least 256, one for each byte")
    if options.vocab_size is not None and options.tokenizer is not None:
        raise ValueError(f"--vocab-size: {options.vocab_size}, but --tokenizer names a vocabulary; leave one out")
    if not (options.name and Path(options.name).name == options.name):
        raise ValueError(f"--name: {options.name!r} is no name of a folder; give one, as mine")
    if options.tokenizer is not None:
        load_tokenizer(options.tokenizer)
    options.policy(1)


@contextmanager
def kept_settings(options: Options, found: dict[str, Any]) -> Iterator[None]:
    """Inside, the output is this process's alone; its settings are written, or are found to be the same.

    Raises:
        ValueError: it was begun with other settings, or of another content of the source; it is no output of ours;
            another process is at work on it.
    """
    folder = options.output
    path = folder / SETTINGS
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        if strange := sorted(entry.name for entry in folder.iterdir() if entry.name != f"{SETTINGS}.partial"):
            raise ValueError(f"{folder}: holds files of others, as {strange[0]}; name a new folder")
        write_whole(path, _encode({**options.describe(), "found": found}))
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another process is writing it; wait for its end") from None
        _compare(path, json.loads(file.read()), {**options.describe(), "found": found})
        yield


def describe_source(path: Path, source: Source) -> dict[str, Any]:
    """Names, sizes and times of all files that items come from or that lie in the folder, as a checksum; and counts."""
    listed = {file for file in path.rglob("*") if file.is_file()} if path.is_dir() else {path}
    parts = (
        part for item in source.items for part in (*item.parts, *(p for _, of_turn in item.turns for p in of_turn))
    )
    listed |= {part.path for part in parts if isinstance(part, Blob)}
    digest, num_bytes = hashlib.sha256(), 0
    for file in sorted(listed):
        state = file.stat()
        digest.update(f"{file}\0{state.st_size}\0{state.st_mtime_ns}\0".encode("utf-8", "surrogateescape"))
        num_bytes += state.st_size
    return {"files": len(listed), "bytes": num_bytes, "sha256": digest.hexdigest()}


def check_folders(options: Options) -> None:
    """Raise ValueError where one folder lies in the other: what is written would be read."""
    source, output = options.source.resolve(), options.output.resolve()
    if source == output or source in output.parents or output in source.parents:
        raise ValueError(f"{options.output}: lies in {options.source}, or holds it; name a folder elsewhere")


def _compare(path: Path, was: dict[str, Any], now: dict[str, Any]) -> None:
    if was["source"] == now["source"] and was["found"] != now["found"]:
        before, after = was["found"], now["found"]
        raise ValueError(
            f"{now['source']}: has changed since {path.parent} was begun: {before['files']} files of {before['bytes']} "
            f"bytes then, {after['files']} files of {after['bytes']} bytes now, or other times; name a new folder"
        )
    for key in now:
        if was.get(key) != now[key]:
            raise ValueError(
                f"{path}: {key} is {json.dumps(was.get(key))} there but {json.dumps(now[key])} now; use the same "
                "options and versions, or another folder"
            )


def _encode(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
