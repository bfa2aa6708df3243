"""Write samples that a program has made as WebDataset shards: the same samples, the same bytes."""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from oneflow_dist.config import RANGES
from oneflow_dist.extras import require
from oneflow_dist.toml import check_range

if TYPE_CHECKING:
    from oneflow_dist.containers import ShardRecord

SHARD_SAMPLES = 1024
PREFIXES = {"train": "", "heldout": "heldout-"}  # of keys, by split


def parse_arguments(
    description: str | None, documents: str, others: Mapping[str, tuple[int, str]] | None = None
) -> argparse.Namespace:
    """The command line of a program that makes shards: `folder`, which then exists, `documents`, `seed` and others.

    Args:
        documents: what --documents counts.
        others: numbers from 1 on, by name, with their default and what they count.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path, help="where the shards and the vocabulary go")
    parser.add_argument("--seed", type=int, default=0)
    counts = {"documents": (4096, documents), **(others or {})}
    for name, (default, what) in counts.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"{what} (%(default)s)")
    args = parser.parse_args()
    for name in counts:
        check_range(f"--{name}", getattr(args, name), "[1, inf)")
    check_range("--seed", args.seed, RANGES["run"]["seed"])
    args.folder.mkdir(parents=True, exist_ok=True)
    return args


def read_records(pattern: str) -> Iterator[ShardRecord]:
    """The records of shards of others, beside which nothing is written."""
    from oneflow_dist.data.shards import open_shards  # here, since it imports torch

    with tempfile.TemporaryDirectory() as index:
        shards = open_shards("shards", pattern, index)
        for number in range(len(shards)):
            yield shards.read(number)


def encode_png(image: np.ndarray) -> bytes:
    """Pixels [H, W] or [H, W, 3] uint8 as a picture."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def write_shards(folder: Path, name: str, samples: list[dict[str, bytes | str]], prefix: str = "") -> None:
    """Write the shards of one set, samples as files by extension; those of an earlier call with more samples go.

    Args:
        prefix: of the samples' keys, so that those of two splits are not the same.
    """
    require(folder, "experiments", "webdataset")
    import webdataset  # here, since it imports torch

    num_shards = -(-len(samples) // SHARD_SAMPLES)
    for path in sorted(folder.glob(f"{name}-*.tar"))[num_shards:]:
        path.unlink()
    for shard, first in enumerate(range(0, len(samples), SHARD_SAMPLES)):
        path = folder / f"{name}-{shard:06d}.tar"
        with webdataset.TarWriter(str(path.with_suffix(".tmp")), mtime=0) as tar:
            for number, files in enumerate(samples[first : first + SHARD_SAMPLES], start=first):
                tar.write({"__key__": f"{prefix}{number:06d}", **files})
        path.with_suffix(".tmp").rename(path)
