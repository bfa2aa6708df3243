"""Folders as people have them, small, and what `oneflow prepare` makes of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from oneflow_dist.prepare.duplicates import Signature
from oneflow_dist.prepare.run import prepare
from oneflow_dist.prepare.samples import Kind, Picture, Sample
from oneflow_dist.prepare.settings import Options
from tests.conftest import without_shape_checks
from tests.prepare.nasty import store

WORDS = ("red", "green", "blue", "old", "new", "small", "round", "tall")


def scene(seed: int, width: int = 48, height: int = 48) -> Image.Image:
    """Noise with as much of each octave as photographs have: no two seeds look alike."""
    rng = np.random.default_rng(seed)
    pixels = np.full((height, width, 3), 128.0)
    for octave in (2, 4, 8, 16):
        noise = Image.fromarray(rng.integers(0, 256, (octave, octave, 3)).astype(np.uint8))
        pixels += (np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), dtype=float) - 128) / octave**0.5
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_pairs(folder: Path, count: int, first: int = 0) -> Path:
    """Pictures with their captions beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        (folder / f"{number:04d}.png").write_bytes(store(scene(number), "PNG"))
        words = (WORDS[number % 8], WORDS[number // 8 % 8], "thing")
        (folder / f"{number:04d}.txt").write_text(" ".join(words))
    return folder


def options(source: Path, output: Path, **others: Any) -> Options:
    return Options(source=source, output=output, **{"name": "toy", "size": 16, **others})


def run(source: Path, output: Path, **others: Any) -> str:
    """What `oneflow prepare` prints; without shape checks, as packs are measured with thousands of samples."""
    with without_shape_checks():
        return prepare(options(source, output, **others))


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder, those in folders of it too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def a_picture(seed: int = 0, length: int = 100) -> Picture:
    """Like no other but that of the same seed."""
    rng = np.random.default_rng(seed)
    signature = Signature(int(rng.integers(1 << 62)), rng.integers(0, 256, 192).astype(np.uint8).tobytes())
    return Picture(
        offset=0,
        length=length,
        sha256=f"{seed:064d}",
        bits=signature.bits,
        colours=signature.colours.hex(),
        width=64,
        height=48,
        cut=(16, 16),
        done=(),
    )


def a_sample(number: int, kind: Kind = "pairs", seeds: Sequence[int] | None = None, **others: Any) -> Sample:
    """A sample of one picture, or of those of these seeds."""
    pictures = tuple(a_picture(seed) for seed in ([number] if seeds is None else seeds))
    captions = (f"caption {number}",) if kind == "pairs" else ()
    own = {"key": f"{number:08d}", "name": f"{number:03d}.png", "pictures": pictures, "captions": captions}
    return Sample(kind=kind, **(own | others))
