"""Copies that ranks on several nodes make of a small run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from oneflow_dist.config import Config, load_config, write_config
from oneflow_dist.copies.record import find_records, intact_files, read_record
from oneflow_dist.copies.writer import CopyWriter
from oneflow_dist.progress import Progress
from tests.test_checkpoint import tensors, trained


def with_copies(make_config: Callable[..., Config], folder: Path) -> Config:
    """A run that makes copies, all of it in this folder."""
    folders = [f"run.folder={folder / 'run'}", f"checkpoint.memory_folder={folder / 'memory'}"]
    return make_config(*folders, "checkpoint.memory_every_steps=5")


def config_in(config: Config) -> str:
    """The run folder, with its config, for ranks."""
    folder = Path(config.run.folder)
    folder.mkdir(parents=True)
    (folder / "config.toml").write_text(write_config(config))
    return str(folder)


def be_on_node(ranks_per_node: int) -> None:
    """As a launcher says where a rank is."""
    rank = dist.get_rank()
    os.environ.update(ONEFLOW_NODE=f"node{rank // ranks_per_node}", LOCAL_RANK=str(rank % ranks_per_node))


def copy_on_ranks(folder: str, ranks_per_node: int, overrides: list[str]) -> tuple[list[str], dict[str, torch.Tensor]]:
    """What lies intact on this rank's node after a copy of a run on these ranks, and the state that it is of."""
    be_on_node(ranks_per_node)
    config, rank = load_config(f"{folder}/config.toml", overrides), dist.get_rank()
    parts = trained(config)
    copies = CopyWriter(config, *parts)
    copies.save(Progress(step=7, lanes={rank: {"draws": [rank], "waiting": []}}))
    copies.wait()
    (text,) = find_records(copies.place.folder)
    return intact_files(copies.place.copy_of(7), read_record(text), slice(None)), tensors(*parts)
