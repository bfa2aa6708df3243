"""Checkpoints: written beside, then renamed, so that what has the final name is whole."""

from __future__ import annotations

import dataclasses
import errno
import math
from concurrent import futures
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor

from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import load_tokenizer
from oneflow_dist.files import free_bytes
from oneflow_dist.optim import AdamW, MovingAverage
from oneflow_dist.progress import (
    Progress,
    checkpoint_folder,
    clear_place,
    complete,
    delete_old,
    folder_beside,
    is_complete,
    read_config,
    read_progress,
)
from oneflow_dist.runtime import GLOO, gather_objects, is_main
from oneflow_dist.stored_tensors import named_leaves, read_tensors

Keys = dict[str, tuple[str, ...]]  # of the config: some of a section, () all; of [modality] those of each modality

# Those that decide which parameters there are, and what they mean.
PIECES = ("token", "channels", "patch", "adapter", "adapter_width", "time_conditioning", "understanding")
ARCHITECTURE: Keys = {"objective": (), "model": (), "lora": ("rank", "products"), "heads": (), "modality": PIECES}
PLACE: Keys = {"data": ("packs_per_step", "window_samples"), "run": ("seed",)}  # what the states of lanes depend on
# What decides how a run goes on; of the data, data/identity.py tells more than the paths do.
COURSE = ("modality", "lora", "flow", "optim", "train", "data")
NOT_COURSE = ("codec", "mixture", "tokenizer", "workers", "cached_samples", "offload", "compile", "gc_every_steps")


class CheckpointWriter:
    """Saves a run; with `checkpoint.background` while it goes on. Leaving it as a context waits for the last save."""

    def __init__(self, config: Config, model: nn.Module, optimizer: AdamW, ema: MovingAverage):
        self.config = config
        self.model, self.optimizer, self.ema = model, optimizer, ema
        self.under_way: futures.Future[Any] | None = None
        if config.checkpoint.background:
            # A thread writes. Its messages must not mix with those of the steps, so they have a group of their own.
            self.group = dist.new_group(backend=GLOO)
            self.stager = host_stager()

    def save(self, progress: Progress) -> None:
        """Write model, optimizer, average and progress; then delete checkpoints beyond `checkpoint.keep`.

        In the background, what is written is the state at this call, and a save that is still under way ends first.

        Raises:
            OSError: not enough room on the disk. Nothing has been written then.
            CheckpointException: on all ranks, that one could not write its part of this save or of the one before.
        """
        self.wait()
        final = checkpoint_folder(self.config.run.folder, progress.step)
        gathered = gather_objects((progress.lanes, is_complete(final)))
        if gathered[0][1]:
            return
        lanes = {index: lane for part, _ in gathered for index, lane in part.items()}
        state = run_tensors(self.model, self.optimizer, self.ema)
        _check_room_of_all(final, state)
        if is_main():
            clear_place(final)
        dist.barrier()
        progress = dataclasses.replace(progress, lanes=lanes)
        if self.config.checkpoint.background:
            # Nothing is copied ahead: what the stager gives is in host memory, and the thread knows no device.
            writer = _Writer(final, self.config, progress, per_thread_copy_ahead=0)
            saving = dcp.async_save(state, storage_writer=writer, process_group=self.group, async_stager=self.stager)
            assert isinstance(saving, futures.Future), "the stager is asked to copy before it returns"
            self.under_way = saving
        else:
            dcp.save(state, storage_writer=_Writer(final, self.config, progress))

    def wait(self) -> None:
        """Until nothing is under way; what went wrong with it is raised on all ranks."""
        under_way, self.under_way = self.under_way, None
        if under_way is not None:
            under_way.result()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self.wait()
        elif self.under_way is not None:
            futures.wait([self.under_way])  # a run that fails keeps its last checkpoint, and its own error


def load_checkpoint(folder: Path, config: Config, model: nn.Module, optimizer: AdamW, ema: MovingAverage) -> Progress:
    """Continue from a checkpoint, whatever layout wrote it.

    Raises:
        ValueError: it is damaged, or belongs to another architecture or another cut of the data.
    """
    progress = read_progress(folder)
    if progress.step > config.train.steps:
        raise ValueError(
            f"train.steps: {config.train.steps}, but {folder} has made {progress.step}; raise it, or name another "
            "run.folder to start anew"
        )
    check_same(folder, config, {**ARCHITECTURE, **PLACE})
    read_tensors(run_tensors(model, optimizer, ema), folder)
    return progress


def check_same(folder: Path, config: Config, keys_of: Keys) -> None:
    """Compare keys of the config with those that a checkpoint was written with.

    Raises:
        ValueError: the first that differs, with both values.
    """
    theirs = read_config(folder)
    for section, keys in keys_of.items():
        for name, (there, here) in _pair(section, theirs, config).items():
            if there is None or here is None:
                raise ValueError(
                    f"{folder}: [{name}] is {'not there' if there is None else 'there'} but "
                    f"{'not ' if here is None else ''}here; set another run.folder to start anew"
                )
            for key in keys or [field.name for field in dataclasses.fields(here)]:
                if getattr(there, key) != getattr(here, key):
                    raise ValueError(
                        f"{folder}: {name}.{key} is {getattr(there, key)!r} there but {getattr(here, key)!r} here; "
                        "set another run.folder to start anew, or take the checkpoint's value to continue"
                    )


def list_changes(folder: Path, config: Config) -> list[str]:
    """What of the course of a run is another from this checkpoint on, defaults of the program among it; a line each."""
    theirs, lines = read_config(folder), []
    for section in COURSE:
        for name, (there, here) in _pair(section, theirs, config).items():
            for key in (field.name for field in dataclasses.fields(here) if field.name not in NOT_COURSE):
                before, now = getattr(there, key), getattr(here, key)
                if before != now:
                    lines.append(f"{name}.{key}: {now!r}, before {before!r}")
    return lines


def _pair(section: str, theirs: Config, ours: Config) -> dict[str, tuple[Any, Any]]:
    """The tables of a section by name, as they are in two configs; None where one has none."""
    there, here = getattr(theirs, section), getattr(ours, section)
    if not isinstance(here, dict):
        return {section: (there, here)}
    return {f"{section}.{name}": (there.get(name), here.get(name)) for name in dict.fromkeys([*there, *here])}


class _Writer(dcp.FileSystemWriter):
    """Writes the parts of a checkpoint beside its name, which it gets once all ranks have written theirs."""

    def __init__(self, final: Path, config: Config, progress: Progress, **options: Any):
        super().__init__(folder_beside(final), **options)
        self.final, self.config, self.progress = final, config, progress

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On rank 0 alone, after all parts; DCP tells every rank when this fails, as when a part does."""
        super().finish(metadata, results)
        complete(self.final, self.config, self.progress, tokenizer_file(self.config))
        delete_old(self.config.run.folder, self.config.checkpoint)


def host_stager() -> DefaultStager:
    """Copies tensors to host memory before it returns, into the same place every time."""
    on_gpu = torch.cuda.is_available()
    return DefaultStager(
        StagingOptions(
            use_pinned_memory=on_gpu,
            use_non_blocking_copy=on_gpu,
            use_shared_memory=False,
            use_async_staging=False,
        )
    )


def tokenizer_file(config: Config) -> bytes | None:
    """The ranks file as it was read when the run started; None for "bytes"."""
    return load_tokenizer(config.data.tokenizer).content if config.data.tokenizer != "bytes" else None


def run_tensors(model: nn.Module, optimizer: AdamW, ema: MovingAverage) -> dict[str, Any]:
    """The tensors of a run themselves, no copies: what is read into them has been loaded."""
    return {
        "model": dict(model.named_parameters()),
        "ema": ema.tensors,
        "optimizer": optimizer.tensors,
    }


def _check_room_of_all(final: Path, state: dict[str, Any]) -> None:
    """All ranks learn how much all of them will write, and whether it fits."""
    needed = torch.tensor(bytes_to_write(state), dtype=torch.int64)
    dist.all_reduce(needed)
    free = torch.tensor(free_bytes(final), dtype=torch.int64)
    dist.all_reduce(free, op=dist.ReduceOp.MIN)
    check_room(final, int(needed), int(free))


def check_room(final: Path, needed: int, free: int) -> None:
    """Raise OSError where a checkpoint of so many bytes does not fit."""
    if free < needed * 1.02 + 2**20:
        raise OSError(
            errno.ENOSPC,
            f"{final}: the checkpoint needs {needed >> 20} MiB but the disk has {free >> 20} MiB left; make room and "
            "run the same command again",
        )


def bytes_to_write(state: dict[str, Any]) -> int:
    """This rank's part of what is written: of replicas only one is."""
    return sum(_num_bytes(value) for _, value in named_leaves(state))


def _num_bytes(value: Any) -> int:
    if not isinstance(value, Tensor):
        return 64
    if not isinstance(value, DTensor):
        return value.nbytes
    axes = zip(value.device_mesh.shape, value.placements, strict=True)
    return value.to_local().nbytes // math.prod(size for size, placement in axes if placement.is_replicate())
