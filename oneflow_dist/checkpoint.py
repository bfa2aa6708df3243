"""Checkpoints: written beside, then renamed, so that what has the final name is whole."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.tensor import DTensor

from oneflow_dist.config import Config, load_config, write_config
from oneflow_dist.guard.guard import GuardState
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.optim import MovingAverage
from oneflow_dist.runtime import is_main, log

ARCHITECTURE = ("model", "heads", "image")  # config sections that decide the shapes of parameters
FORMAT = 3  # of progress.json
LANES = ("packs_per_step", "window_samples")  # of [data]: what the states of lanes depend on


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a run stands, besides its tensors. No random generator has a state: all noise is keyed by its sample."""

    step: int
    lanes: dict[int, dict[str, Any]]
    guard: GuardState = dataclasses.field(default_factory=GuardState)


def checkpoint_folder(run_folder: str, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return Path(run_folder) / "checkpoints" / f"step-{step:08d}"


def find_latest(run_folder: str) -> Path | None:
    """The last complete checkpoint of a run; incomplete ones are named and left alone."""
    folders = sorted((Path(run_folder) / "checkpoints").glob("step-*"), reverse=True)
    complete = [folder for folder in folders if (folder / "COMPLETE").exists()]
    for folder in folders:
        if folder not in complete:
            last = f"the last complete one is {complete[0].name}" if complete else "there is no complete one"
            log(f"{folder} is incomplete (no COMPLETE file) and ignored; {last}")
    return complete[0] if complete else None


def save_checkpoint(
    config: Config, progress: Progress, model: nn.Module, optimizer: torch.optim.Optimizer, ema: MovingAverage
) -> None:
    """Write model, optimizer, average and progress; then delete checkpoints beyond `checkpoint.keep`.

    Raises:
        OSError: not enough room on the disk. Nothing has been written then.
    """
    final = checkpoint_folder(config.run.folder, progress.step)
    if (final / "COMPLETE").exists():
        return
    state = _state_dict(model, optimizer, ema)
    _check_room(final, state)
    beside = final.with_name(final.name + ".incomplete")
    if is_main():
        shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(final, ignore_errors=True)
        beside.mkdir(parents=True)
    dist.barrier()
    dcp.save(state, checkpoint_id=str(beside))
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, progress.lanes)
    if is_main():
        lanes = {index: lane for part in gathered for index, lane in part.items()}
        table = dataclasses.asdict(dataclasses.replace(progress, lanes=lanes))
        (beside / "progress.json").write_text(json.dumps({"format": FORMAT, **table}))
        (beside / "config.toml").write_text(write_config(config))
        (beside / "COMPLETE").touch()
        beside.rename(final)
        _delete_old(config)
    dist.barrier()


def load_checkpoint(
    folder: Path, config: Config, model: nn.Module, optimizer: torch.optim.Optimizer, ema: MovingAverage
) -> Progress:
    """Continue from a checkpoint, whatever layout wrote it.

    Raises:
        ValueError: it is damaged, or belongs to another architecture or another cut of the data.
    """
    _check_whole(folder)
    check_same(folder, config, {**dict.fromkeys(ARCHITECTURE), "data": LANES, "run": ("seed",)})
    state = _state_dict(model, optimizer, ema)
    dcp.load(state, checkpoint_id=str(folder))
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)  # decay, betas and the like are the config's, not the checkpoint's
    return read_progress(folder)


def read_progress(folder: Path) -> Progress:
    """Where a run stood when it wrote a checkpoint.

    Raises:
        ValueError: it is no complete checkpoint, or one of another version.
    """
    if not (folder / "COMPLETE").exists():
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


def load_model(path: str | Path) -> tuple[OneFlow, Config]:
    """The averaged weights of a checkpoint, or of the last one of a run folder, on this process's device.

    Raises:
        ValueError: there is no complete checkpoint.
    """
    folder = Path(path) if (Path(path) / "COMPLETE").exists() else find_latest(str(path))
    if folder is None:
        raise ValueError(
            f"{path}: no complete checkpoint here or in its checkpoints/; train first, or name another folder"
        )
    _check_whole(folder)
    config = load_config(folder / "config.toml")
    model = OneFlow(config).to("cuda" if torch.cuda.is_available() else "cpu")
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="torch.distributed is disabled"
        )  # a tool is one process, as it should
        dcp.load({"ema": dict(model.named_parameters())}, checkpoint_id=str(folder), no_dist=True)
    return model.eval(), config


def check_same(folder: Path, config: Config, sections: dict[str, tuple[str, ...] | None]) -> None:
    """Compare config sections (None: all their keys) with those that a checkpoint was written with."""
    theirs = load_config(folder / "config.toml")
    for section, keys in sections.items():
        there, here = getattr(theirs, section), getattr(config, section)
        for key in keys or [field.name for field in dataclasses.fields(here)]:
            if getattr(there, key) != getattr(here, key):
                raise ValueError(
                    f"{folder}: {section}.{key} is {getattr(there, key)!r} there but {getattr(here, key)!r} here; "
                    "set another run.folder to start anew, or take the checkpoint's value to continue"
                )


def _state_dict(model: nn.Module, optimizer: torch.optim.Optimizer, ema: MovingAverage) -> dict[str, Any]:
    return {
        "model": dict(model.named_parameters()),
        "ema": ema.tensors,
        "optimizer": get_optimizer_state_dict(model, optimizer),
    }


def _check_room(final: Path, state: dict[str, Any]) -> None:
    """All ranks learn how much all of them will write, and whether it fits."""
    needed = torch.tensor(sum(_num_bytes(value) for value in _leaves(state)), dtype=torch.int64)
    dist.all_reduce(needed)
    existing = next(parent for parent in final.parents if parent.exists())
    free = torch.tensor(shutil.disk_usage(existing).free, dtype=torch.int64)
    dist.all_reduce(free, op=dist.ReduceOp.MIN)
    if free < needed * 1.02 + 2**20:
        raise OSError(
            errno.ENOSPC,
            f"{final}: the checkpoint needs {_mib(needed)} MiB but the disk has {_mib(free)} MiB left; make room and "
            "run the same command again: it continues from the last checkpoint",
        )


def _check_whole(folder: Path) -> None:
    """Whether every file of a checkpoint is there and as long as its index says."""
    for place in dcp.FileSystemReader(str(folder)).read_metadata().storage_data.values():
        path = folder / place.relative_path
        if not path.exists() or path.stat().st_size < place.offset + place.length:
            raise ValueError(
                f"{folder}: {path.name} is missing or cut off; move this folder away to continue from the one before"
            )


def _leaves(value: Any) -> list[Any]:
    return [leaf for item in value.values() for leaf in _leaves(item)] if isinstance(value, dict) else [value]


def _num_bytes(value: Any) -> int:
    if isinstance(value, DTensor):
        value = value.to_local()
    return value.numel() * value.element_size() if isinstance(value, torch.Tensor) else 64


def _mib(num_bytes: torch.Tensor) -> int:
    return int(num_bytes) // 2**20


def _delete_old(config: Config) -> None:
    complete = sorted(mark.parent for mark in (Path(config.run.folder) / "checkpoints").glob("step-*/COMPLETE"))
    for folder in complete[: -config.checkpoint.keep]:
        shutil.rmtree(folder)
