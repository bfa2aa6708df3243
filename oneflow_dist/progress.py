"""The folders of checkpoints: which are whole, which is the last, and where the run stood that wrote one."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oneflow_dist.config import CheckpointConfig, Config, load_config, write_config
from oneflow_dist.files import sync_folder, write_whole
from oneflow_dist.guard.skipping import GuardState
from oneflow_dist.runtime import log

FORMAT = 4  # of progress.json
COMPLETE = "COMPLETE"  # the last file of a checkpoint; not empty, since some tools leave empty files out of a copy
NAME = r"step-\d{8,}"  # of a checkpoint's folder
INCOMPLETE = ".incomplete"  # ends the name of a folder that is being written
LAST_SAVED = "last_checkpoint"  # in the run folder: the name of the newest that has been complete
GO_BACK = "copy this checkpoint again, or move its folder away to go on from the one before"
TOKENIZER = "tokenizer.tiktoken"  # in a checkpoint: the ranks file that its ids mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run stands, besides its tensors. No random generator has a state: all noise is keyed by its sample."""

    step: int
    lanes: dict[int, dict[str, Any]]
    data: dict[str, Any] = dataclasses.field(default_factory=dict)  # what it was trained on, see data/identity.py
    guard: GuardState = dataclasses.field(default_factory=GuardState)


def checkpoint_folder(run_folder: str, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return Path(run_folder) / "checkpoints" / f"step-{step:08d}"


def folder_beside(final: Path) -> Path:
    """Where a checkpoint is written until it is whole."""
    return final.with_name(final.name + INCOMPLETE)


def is_complete(folder: Path) -> bool:
    """Whether all of a checkpoint has been written."""
    return (folder / COMPLETE).exists()


def find_latest(run_folder: str) -> Path | None:
    """The newest checkpoint of a run; None where none has ever been complete.

    Raises:
        ValueError: there is something of a run to go on from, but it cannot be used.
    """
    folders = _steps(run_folder)
    newest = folders[max(folders)] if folders else None
    last_saved = Path(run_folder) / LAST_SAVED
    saved = last_saved.read_text(errors="replace").strip() if last_saved.exists() else ""
    if newest is None and saved:
        raise ValueError(
            f"{run_folder}: {saved} was saved here, but checkpoints/ holds none; mount its disk or copy them back, or "
            "name another run.folder to start anew"
        )
    if newest is not None and not is_complete(newest):
        others = [step for step, folder in folders.items() if is_complete(folder)]
        then = f"go on from {folders[max(others)].name}" if others else "start anew in another run.folder"
        raise ValueError(
            f"{newest}: has no file {COMPLETE}, without which nobody knows whether it is whole: was it copied in part? "
            f"Copy it again with all its files, or move it away to {then}"
        )
    for folder in sorted((Path(run_folder) / "checkpoints").glob(f"step-*{INCOMPLETE}")):
        log(f"{folder} is left over from a save that was broken off, and ignored")
    if newest is not None and re.fullmatch(NAME, saved) and _step(newest.name) < _step(saved):
        log(f"{run_folder}: {saved}, the last that was saved, is not here; {newest.name} is the newest")
    return newest


def complete_steps(run_folder: str) -> dict[int, Path]:
    """The complete checkpoints of a run by step; a folder that was given another name is none."""
    return {step: folder for step, folder in _steps(run_folder).items() if is_complete(folder)}


def _steps(run_folder: str) -> dict[int, Path]:
    folders = (Path(run_folder) / "checkpoints").glob("step-*")
    return {_step(folder.name): folder for folder in folders if re.fullmatch(NAME, folder.name)}


def _step(name: str) -> int:
    return int(name.removeprefix("step-"))


def clear_place(final: Path) -> None:
    """An empty folder beside `final`, in place of what a save that died has left."""
    if final.exists():
        raise FileExistsError(f"{final}: exists, and nothing is written over it; move it away")
    shutil.rmtree(folder_beside(final), ignore_errors=True)
    folder_beside(final).mkdir(parents=True)


def complete(final: Path, config: Config, progress: Progress, tokenizer: bytes | None = None) -> None:
    """Add what is not tensors to the folder beside `final`, then give it that name."""
    describe(folder_beside(final), config, progress, tokenizer)
    give_name(final)


def describe(beside: Path, config: Config, progress: Progress, tokenizer: bytes | None = None) -> None:
    """Write what of a checkpoint is not tensors.

    Args:
        tokenizer: the content of the ranks file; None for "bytes", or where nothing has been tokenized.
    """
    table = {"format": FORMAT, **dataclasses.asdict(progress)}
    write_whole(beside / "progress.json", json.dumps(table).encode())
    write_whole(beside / "config.toml", write_config(config).encode())
    if tokenizer is not None:
        write_whole(beside / TOKENIZER, tokenizer)


def give_name(final: Path) -> None:
    """To the folder beside `final`, in which all files are; it survives a power cut."""
    beside = folder_beside(final)
    write_whole(beside / COMPLETE, b"All files of this checkpoint have been written.\n")
    beside.rename(final)
    sync_folder(final.parent)
    write_whole(final.parents[1] / LAST_SAVED, f"{final.name}\n".encode())


def read_progress(folder: Path) -> Progress:
    """Where a run stood when it wrote a checkpoint.

    Raises:
        ValueError: it is no complete checkpoint, or one of another version.
    """
    if not is_complete(folder):
        raise ValueError(
            f"{folder}: no complete checkpoint (no COMPLETE file); name a folder as checkpoints/step-00000100"
        )
    path = folder / "progress.json"
    try:
        table = json.loads(path.read_text())
        version = table.get("format")
        if version == FORMAT:
            lanes = {int(index): lane for index, lane in table["lanes"].items()}
            return Progress(step=table["step"], lanes=lanes, data=table["data"], guard=GuardState(**table["guard"]))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: damaged ({error!r}); {GO_BACK}") from error
    raise ValueError(
        f"{folder}: written by another version (format {version}, this one reads {FORMAT}); "
        "start a new run in another run.folder"
    )


def read_config(folder: Path) -> Config:
    """The config that a checkpoint was written with.

    Raises:
        ValueError: it is missing or damaged.
    """
    path = folder / "config.toml"
    try:
        return load_config(path)
    except ValueError as error:
        raise ValueError(f"{folder}: its config.toml is missing or damaged ({error}); {GO_BACK}") from error


def delete_old(run_folder: str, config: CheckpointConfig) -> None:
    """Delete all but the newest `keep` checkpoints and those of multiples of `keep_every_steps`."""
    complete = complete_steps(run_folder)
    every = config.keep_every_steps
    passing = sorted(step for step in complete if not (every and step % every == 0))
    for step in passing[: -config.keep]:
        folder = complete[step]
        if not folder.is_symlink():  # the user keeps it elsewhere
            shutil.rmtree(folder.rename(folder_beside(folder)))  # first the name: what is half deleted is no checkpoint
