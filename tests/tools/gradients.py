"""Shards of small pictures to train an autoencoder on."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image


def write_shard(path: Path, samples: list[dict[str, bytes]]) -> str:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, files in enumerate(samples):
            for extension, data in files.items():
                member = tarfile.TarInfo(f"{number:04d}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return str(path)


def png(width: int, height: int, rng: np.random.Generator) -> bytes:
    """A gradient between two random colours."""
    ramp = np.linspace(0, 1, width)[None, :, None] * np.ones((height, 1, 1))
    first, last = rng.integers(256, size=(2, 3))
    buffer = io.BytesIO()
    Image.fromarray((first + ramp * (last - first)).astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def write_shards(folder: Path) -> str:
    """A brace pattern: a shard of captioned images, and one of documents with two images each."""
    rng = np.random.default_rng(0)
    pairs = [{"png": png(16, 16, rng), "txt": b"a gradient"} for _ in range(10)]
    documents = [{"json": b"{}", "0.png": png(40, 20, rng), "1.png": png(10, 30, rng)} for _ in range(5)]
    write_shard(folder / "000.tar", pairs)
    write_shard(folder / "001.tar", documents)
    return f"{folder}/{{000..001}}.tar"
