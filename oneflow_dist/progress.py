"""The folders of checkpoints: which are whole, which is the last, and where the run stood that wrote one."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oneflow_dist.config import CheckpointConfig, Config, write_config
from oneflow_dist.files import sync_folder, write_whole
from oneflow_dist.guard.guard import GuardState
from oneflow_dist.runtime import log

FORMAT = 3  # of progress.json
INCOMPLETE = ".incomplete"  # ends the name of a folder that is being written


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run stands, besides its tensors. No random generator has a state: all noise is keyed by its sample.

    A checkpoint of step 0 is where a run starts from: weights alone, without optimizer, average or lanes.
    """

    step: int
    lanes: dict[int, dict[str, Any]]
    guard: GuardState = dataclasses.field(default_factory=GuardState)


def checkpoint_folder(run_folder: str, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return Path(run_folder) / "checkpoints" / f"step-{step:08d}"


def folder_beside(final: Path) -> Path:
    """Where a checkpoint is written until it is whole."""
    return final.with_name(final.name + INCOMPLETE)


def is_complete(folder: Path) -> bool:
    """Whether all of a checkpoint has been written."""
    return (folder / "COMPLETE").exists()


def find_latest(run_folder: str) -> Path | None:
    """The last complete checkpoint of a run; incomplete ones are named and left alone."""
    complete = complete_steps(run_folder)
    last = complete[max(complete)] if complete else None
    advice = f"the last complete one is {last.name}" if last else "there is no complete one"
    for folder in sorted((Path(run_folder) / "checkpoints").glob("step-*"), reverse=True):
        if folder.suffix == INCOMPLETE or not is_complete(folder):
            log(f"{folder} is incomplete (no COMPLETE file) and ignored; {advice}")
    return last


def complete_steps(run_folder: str) -> dict[int, Path]:
    """The complete checkpoints of a run by step; a folder that was given another name is none."""
    folders = [mark.parent for mark in (Path(run_folder) / "checkpoints").glob("step-*/COMPLETE")]
    return {int(folder.name[5:]): folder for folder in folders if re.fullmatch(r"step-\d{8,}", folder.name)}


def clear_place(final: Path) -> None:
    """An empty folder beside `final`, in place of what a save that died has left."""
    shutil.rmtree(folder_beside(final), ignore_errors=True)
    shutil.rmtree(final, ignore_errors=True)
    folder_beside(final).mkdir(parents=True)


def complete(final: Path, config: Config, progress: Progress) -> None:
    """Add what is not tensors to the folder beside `final`, then give it that name; it survives a power cut."""
    beside = folder_beside(final)
    table = {"format": FORMAT, **dataclasses.asdict(progress)}
    write_whole(beside / "progress.json", json.dumps(table).encode())
    write_whole(beside / "config.toml", write_config(config).encode())
    (beside / "COMPLETE").touch()
    sync_folder(beside)
    beside.rename(final)
    sync_folder(final.parent)


def read_progress(folder: Path) -> Progress:
    """Where a run stood when it wrote a checkpoint.

    Raises:
        ValueError: it is no complete checkpoint, or one of another version.
    """
    if not is_complete(folder):
        raise ValueError(
            f"{folder}: no complete checkpoint (no COMPLETE file); name a folder as checkpoints/step-00000100"
        )
    table = json.loads((folder / "progress.json").read_text())
    if table.get("format") != FORMAT:
        raise ValueError(
            f"{folder}: written by another version (format {table.get('format')}, this one reads {FORMAT}); "
            "start a new run in another run.folder"
        )
    lanes = {int(index): lane for index, lane in table["lanes"].items()}
    return Progress(step=table["step"], lanes=lanes, guard=GuardState(**table["guard"]))


def delete_old(run_folder: str, config: CheckpointConfig) -> None:
    """Delete all but the newest `keep` checkpoints, those of multiples of `keep_every_steps`, and that of step 0.

    The weights that a run started from are not its own to delete: it cannot write them again.
    """
    complete = complete_steps(run_folder)
    every = config.keep_every_steps
    passing = sorted(step for step in complete if step > 0 and not (every and step % every == 0))
    for step in passing[: -config.keep]:
        shutil.rmtree(complete[step])
