"""A run folder, read as a whole."""

from __future__ import annotations

import math
import pickle
import re
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from oneflow_dist.reporting.differences import Flat, flatten
from oneflow_dist.reporting.launches import Attempt, Place, Status, read_attempts, read_place, status_of
from oneflow_dist.reporting.lines import METRICS, Curve, read_figures, read_lines

COMPLETE, NAME = "COMPLETE", r"step-\d{8,}"  # as oneflow_dist.progress has them, which loads torch
RECENT = 50  # steps, of whose losses and times the mean is told
HANG = re.compile(r'^(\S+ \S+) (\S+), in "(.*)" of step (\d+)$', re.MULTILINE)


class Checkpoint(NamedTuple):
    """A complete one."""

    step: int
    size: int  # bytes on disk
    saved: float  # of time.time()
    writers: int  # ranks that have written a part of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """All that a page shows of a run."""

    folder: Path
    name: str  # that no other run of the page has
    curves: dict[str, Curve]
    figures: dict[str, Curve]
    last_step: int
    written: float  # when, of time.time(), the last line
    config: Flat
    config_text: str
    status: Status
    attempts: list[Attempt]
    place: Place
    checkpoints: list[Checkpoint]
    samples: dict[int, Path]
    skipped: list[tuple[int, str]]
    events: list[tuple[int, str]]  # what guards have seen, by step
    parameters: int  # 0 where nobody knows

    @property
    def num_steps(self) -> int:
        """That it is to make; 0 if that is not known."""
        return int(self.config.get("train.steps", 0))

    @property
    def ranks(self) -> int:
        """0 where nobody knows."""
        axes = [int(self.config.get(f"parallel.{axis}", -1)) for axis in ("replicate", "shard", "tensor")]
        context = int(self.config.get("parallel.context", 1))  # runs of old do not know of it
        told = self.place.ranks or (math.prod(axes) * context if min(axes) > 0 else 0)
        return told or max((checkpoint.writers for checkpoint in self.checkpoints), default=0)

    def so_far(self, name: str, is_speed: bool = False) -> np.ndarray:
        """The sum of a value at each step that has told its seconds; of a speed that of what was done."""
        seconds, curve = self.curves.get("seconds"), self.curves.get(name)
        if seconds is None or curve is None:
            return np.zeros(0 if seconds is None else len(seconds.steps))
        known = dict(zip(curve.steps.tolist(), curve.values.tolist(), strict=True))
        values = np.array([known.get(step, 0.0) for step in seconds.steps.tolist()])
        return np.cumsum(values * seconds.values if is_speed else values)

    def total(self, name: str, is_speed: bool = False) -> float:
        """The last of `so_far`."""
        sums = self.so_far(name, is_speed)
        return float(sums[-1]) if len(sums) else 0.0

    def recent(self, name: str) -> float | None:
        """The mean of a value over the last steps."""
        curve = self.curves.get(name)
        return None if curve is None else float(curve.values[-RECENT:].mean())


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Run folders in their order, with names that tell them apart: as much of their paths as that takes.

    Raises:
        ValueError: one has no metrics, is named twice, or has a file that is damaged.
    """
    paths = [folder.resolve() for folder in folders]
    for number, path in enumerate(paths):
        if path in paths[:number]:
            raise ValueError(f"RUN: {folders[number]}: is named twice; name it once")
    names = [[path.parts[-depth:] for path in paths] for depth in range(1, 1 + max(len(path.parts) for path in paths))]
    different = next(own for own in names if len(set(own)) == len(own))
    return [read_run(folder, "/".join(parts)) for folder, parts in zip(folders, different, strict=True)]


def read_run(folder: Path, name: str) -> Run:
    """A run folder under the name that it has on a page.

    Raises:
        ValueError: it has no metrics, or a file is damaged.
    """
    lines, attempts, checkpoints = read_lines(folder / METRICS), read_attempts(folder), _list_checkpoints(folder)
    place, (config_text, config) = read_place(attempts), _read_config(folder / "config.toml")
    return Run(
        folder=folder,
        name=name,
        curves=lines.curves,
        figures=read_figures(folder),
        last_step=lines.last_step,
        written=(folder / METRICS).stat().st_mtime,
        config=config,
        config_text=config_text,
        status=status_of(folder / METRICS, lines.last_step, int(config.get("train.steps", 0)), attempts),
        attempts=attempts,
        place=place,
        checkpoints=checkpoints,
        samples={_step_of(path): path for path in sorted((folder / "samples").glob("step-*.png"))},
        skipped=lines.skipped,
        events=_list_events(folder, lines.skipped),
        parameters=place.parameters or _count_parameters(folder, checkpoints),
    )


def _read_config(path: Path) -> tuple[str, dict[str, Any]]:
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    try:
        return text, flatten(tomllib.loads(text))
    except ValueError as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from error


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _list_checkpoints(run: Path) -> list[Checkpoint]:
    found = []
    for folder in (run / "checkpoints").glob("step-*"):
        if re.fullmatch(NAME, folder.name) and (folder / COMPLETE).exists():
            with suppress(FileNotFoundError):  # a run that goes on deletes its old ones while we look
                size = sum(path.stat().st_size for path in folder.iterdir())
                writers = len({path.name.split("_")[2] for path in folder.glob("__*_*.distcp")})
                found.append(Checkpoint(_step_of(folder), size, (folder / COMPLETE).stat().st_mtime, writers))
    return sorted(found)


def _list_events(run: Path, skipped: Sequence[tuple[int, str]]) -> list[tuple[int, str]]:
    """What the guards have left in the folder."""
    events = [(step, f"left out: {reason}") for step, reason in skipped]
    for path in run.glob("bad-batch-step-*-rank-*-pack-*.pt"):
        step, rank, pack = path.stem.split("-")[3::2]
        events.append((int(step), f"batch kept: rank {rank}, pack {pack}, in {path.name}"))
    for path in run.glob("hangs/rank-*.txt"):
        for when, host, phase, step in HANG.findall(path.read_text(errors="replace")):
            rank = path.stem.replace("-", " ")
            events.append((int(step), f'hung on {when}: {rank} on {host} in "{phase}"; stacks in hangs/{path.name}'))
    return sorted(events)


class _Anything:
    """Stands for every class that the index of a checkpoint names: keeps what it is given, and does nothing."""

    def __init__(self, *arguments: Any):
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Index(pickle.Unpickler):
    """Reads an index without torch; nothing that it names is imported or run."""

    def find_class(self, _module: str, _name: str) -> Any:
        return _Anything


def _count_parameters(run: Path, checkpoints: Sequence[Checkpoint]) -> int:
    """Of the model in the newest checkpoint, by the shapes in its index; 0 where there is none that can be read."""
    try:
        with (run / "checkpoints" / f"step-{checkpoints[-1].step:08d}" / ".metadata").open("rb") as file:
            entries = _Index(file).load().state["state_dict_metadata"]
        shapes = [entry.state["size"].arguments[0] for name, entry in entries.items() if name.startswith("model.")]
        return sum(math.prod(shape) for shape in shapes)
    except (OSError, pickle.UnpicklingError, EOFError, LookupError, TypeError, AttributeError):
        return 0  # there is none, or another version of torch has written it: the page says nothing of parameters
