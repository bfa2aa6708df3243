"""What a run needs of a node besides its devices and data: code, room and a folder that all nodes share."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import torch

import oneflow_dist.config
import oneflow_kernels
from oneflow_dist.config import Config, write_config
from oneflow_dist.files import free_bytes
from oneflow_dist.model.flops import num_parameters, num_trained
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.parallel.sharding import freeze
from oneflow_dist.planning.gpus import GIB
from oneflow_dist.progress import complete_steps

SEEN_SECONDS = 5.0  # until a file that one node has written is seen by another


def shared_facts(config: Config) -> dict[str, str]:
    """What must be the same on all nodes; short enough to be shown."""
    return {
        "code": code_hash(),
        "config": hashlib.sha256(write_config(config).encode()).hexdigest()[:12],
        "torch": torch.__version__,
        "ranks per node": os.environ.get("LOCAL_WORLD_SIZE", "1"),
    }


def code_hash() -> str:
    """Of all our modules; a commit says nothing of what was changed since."""
    digest = hashlib.sha256()
    for module in (oneflow_dist.config, oneflow_kernels):
        folder = Path(str(module.__file__)).parent
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def check_room(config: Config) -> str:
    """Is there room for the checkpoints that a run keeps and the next one? Says how much.

    Raises:
        ValueError: there is not.
    """
    folder = Path(config.run.folder)
    with torch.device("meta"):
        model = OneFlow(config)
        freeze(model, config)
        size = 4 * num_parameters(model) + 12 * num_trained(model)  # weights; two moments and average
    count = max(1, config.checkpoint.keep + 1 - len(complete_steps(config.run.folder)))
    free = free_bytes(folder)
    if free < count * size:
        raise ValueError(
            f"{folder}: {count} checkpoints of {size / GIB:.2f} GiB need {count * size / GIB:.2f}, its disk has "
            f"{free / GIB:.2f} left; make room, lower checkpoint.keep ({config.checkpoint.keep}) or set run.folder"
        )
    return f"checkpoints need {count * size / GIB:.2f} of {free / GIB:.2f} GiB"


def write_mark(folder: str, mark: str) -> Path:
    """A file by which other nodes know a run folder, which is made where it is missing.

    Raises:
        OSError: the folder cannot be written to.
    """
    path = Path(folder) / mark
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("of launch/health.py, which deletes it\n")
    return path


def find_mark(folder: str, mark: str) -> None:
    """See the mark that the first node has written, and write into the folder.

    Raises:
        ValueError: it is not seen.
        OSError: the folder cannot be written to.
    """
    path = Path(folder) / mark
    deadline = time.monotonic() + SEEN_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise ValueError(
                f"{folder}: the run folder is not shared: {mark}, which the first node has written, is not seen; mount "
                "one disk on all nodes, or set run.folder to a folder that all nodes see"
            )
        time.sleep(0.1)
    own = path.with_name(f"{mark}-{os.environ.get('GROUP_RANK', '0')}")
    own.write_text("")
    own.unlink()
