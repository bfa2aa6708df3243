"""What a picture shows: the label of the labelled picture that is nearest to it."""

# Shapes: n pictures, m labelled ones, E numbers of each.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from PIL import Image

from oneflow_dist.evaluation.answers import read_png


@dataclass(frozen=True, slots=True)
class Judge:
    """Labelled pictures, all of one size."""

    labels: tuple[str, ...]
    pixels: Float32[np.ndarray, "m E"]
    size: tuple[int, int]  # width, height

    @classmethod
    def of(cls, folder: Path) -> Judge:
        """From PNGs in folders that are called by what these show, with _ for blanks.

        Raises:
            ValueError: there are fewer than two folders with pictures, a broken one, or several sizes.
        """
        paths = sorted(folder.glob("*/*.png"))
        labels = tuple(path.parent.name.replace("_", " ") for path in paths)
        if len(set(labels)) < 2:
            raise ValueError(f"{folder}: {len(set(labels))} labels with PNGs; make the benchmark's folder anew")
        pictures = [read_png(path) for path in paths]
        sizes = {picture.size for picture in pictures}
        if len(sizes) > 1:
            raise ValueError(f"{folder}: pictures of {len(sizes)} sizes; a judge compares those of one size")
        return cls(labels, np.stack([as_vector(picture) for picture in pictures]), pictures[0].size)

    def read(self, pictures: Sequence[Image.Image]) -> list[str]:
        """The label of each; pictures of another size are resized."""
        if not pictures:
            return []
        seen = np.stack([as_vector(picture.convert("RGB").resize(self.size)) for picture in pictures])
        nearest = [int(np.square(self.pixels - one).sum(1).argmin()) for one in seen]
        return [self.labels[number] for number in nearest]


def as_vector(picture: Image.Image) -> Float32[np.ndarray, "E"]:
    """Pixels from 0 to 1."""
    return np.asarray(picture, dtype=np.float32).ravel() / np.float32(255.0)
