"""Batches of cropped pictures to posteriors and features, and the time that the networks alone take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float16, Float32, UInt8
from torch import Tensor

from oneflow_dist.model.autoencoder import Autoencoder
from oneflow_dist.model.understanding import Understanding
from oneflow_dist.precompute.prepare import Picture

WINDOW_BATCHES = 64  # after as many, batches that are not full are encoded as they are: bounds what waits in memory


@dataclass(slots=True, kw_only=True)
class Encoder:
    """The networks, with a clock."""

    autoencoder: Autoencoder
    understanding: Understanding | None
    mirror: bool
    device: torch.device
    seconds: float = 0.0  # inside the networks
    num_images: int = 0

    def encode(self, batch: list[Picture]) -> None:
        """Fill in what is stored of pictures of one size."""
        images = self._to_device(batch)
        views = [picture.view for picture in batch if picture.view is not None]
        start = time.perf_counter()
        posteriors = {"npy": self.autoencoder.encode(images)}
        if self.mirror:
            posteriors["mirrored.npy"] = self.autoencoder.encode(images.flip(-1))
        features = self._understand(views) if views else None
        self.seconds += time.perf_counter() - start
        self.num_images += len(batch)
        for place, picture in enumerate(batch):
            for kind, (mean, std) in posteriors.items():
                picture.posteriors[kind] = (mean[place].numpy(), std[place].numpy())
            picture.features = features[place] if features is not None else None

    def _understand(self, views: list[UInt8[np.ndarray, "s t 3"]]) -> Float16[np.ndarray, "n C h w"]:
        """What is stored of the encoder's maps."""
        assert self.understanding is not None, "views are of an encoder"
        maps = self.understanding.encode(torch.from_numpy(np.stack(views)))
        return maps.to(torch.float16).cpu().numpy()

    def _to_device(self, batch: list[Picture]) -> Float32[Tensor, "n 3 H W"]:
        """Pixels 0 to 255 as values in [-1, 1]."""
        pixels = torch.from_numpy(np.stack([picture.pixels for picture in batch])).to(self.device)
        channels_first = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return channels_first.div_(127.5).sub_(1.0)


@dataclass(slots=True)
class Batcher:
    """Collects pictures of one size. Which share a batch depends on their order within one shard, on nothing else."""

    batch_size: int
    waiting: dict[tuple[int, ...], list[Picture]] = field(default_factory=dict)
    num_taken: int = 0

    def add(self, picture: Picture) -> Iterator[list[Picture]]:
        """The batches that are full now."""
        shape = picture.pixels.shape
        batch = self.waiting.setdefault(shape, [])
        batch.append(picture)
        self.num_taken += 1
        if len(batch) == self.batch_size:
            yield self.waiting.pop(shape)
        if self.num_taken == WINDOW_BATCHES * self.batch_size:
            yield from self.flush()

    def flush(self) -> Iterator[list[Picture]]:
        """All that still wait; the next picture may be of another shard."""
        self.num_taken = 0
        while self.waiting:
            yield self.waiting.pop(next(iter(self.waiting)))
