"""What an output will cost, measured on the first images and counted on all: nothing is written."""

from __future__ import annotations

import itertools
import tarfile
from dataclasses import dataclass
from pathlib import Path

from oneflow_dist.precompute.encoder import Batcher
from oneflow_dist.precompute.prepare import PreparedSample
from oneflow_dist.precompute.settings import Tools
from oneflow_dist.precompute.shard_work import encode_sample, prepare
from oneflow_dist.precompute.source import open_raw

MEASURED_BATCHES = 3  # after one that warms up
BLOCK = tarfile.BLOCKSIZE  # a file in a tar takes a block for its name, then whole blocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Counted: shards to bytes. Measured on a few batches, nothing else running: the rest."""

    shards: int
    samples: int
    images: int
    num_bytes: int
    images_per_second: float  # of the networks
    output_bytes: int

    def hours(self, num_devices: int) -> float:
        """At the measured rate, shared out evenly."""
        return self.images / self.images_per_second / num_devices / 3600 if self.images else 0.0


def estimate(tools: Tools, shards: list[Path]) -> Estimate:
    """Scan all shards and encode the first images of the first ones."""
    samples = images = num_bytes = 0
    for shard in shards:
        raw = open_raw(shard)
        raw.file.close()
        samples += len(raw.samples)
        images += sum(sample.num_images for sample in raw.samples)
        num_bytes += raw.num_bytes
    rate, bytes_per_sample = _measure(tools, shards)
    if images and not rate:
        raise ValueError(
            f"{shards[0]}: none of the first pictures can be read, so nothing is measured; mend or leave out the shard"
        )
    return Estimate(
        shards=len(shards),
        samples=samples,
        images=images,
        num_bytes=num_bytes,
        images_per_second=rate,
        output_bytes=round(samples * bytes_per_sample),
    )


def _measure(tools: Tools, shards: list[Path]) -> tuple[float, float]:
    """(images per second inside the networks, bytes of a sample as it is written)."""
    batch_size = tools.options.batch_size
    samples = _first_samples(tools, shards, (1 + MEASURED_BATCHES) * batch_size)
    batcher = Batcher(batch_size)
    pictures = [picture for sample in samples for picture in sample.pictures]
    full = [batch for picture in pictures for batch in batcher.add(picture)]
    batches = [*full, *batcher.flush()]
    encoder = tools.encoder()
    for number, batch in enumerate(batches):
        encoder.encode(batch)
        if number == 0 and len(batches) > 1:
            encoder.seconds, encoder.num_images = 0.0, 0
    sizes = [len(content) for sample in samples for _, content in encode_sample(sample, tools.options.dtype)]
    num_bytes = sum(BLOCK + -(-size // BLOCK) * BLOCK for size in sizes)
    return encoder.num_images / max(encoder.seconds, 1e-9), num_bytes / max(1, len(samples))


def _first_samples(tools: Tools, shards: list[Path], num_images: int) -> list[PreparedSample]:
    """Good samples from the start, until they have as many images; at most ten times as many are looked at."""
    found: list[PreparedSample] = []
    how = tools.preparation()
    for shard in shards:
        raw = open_raw(shard)
        with raw.file:
            for sample in itertools.islice(raw.samples, 10 * num_images):
                outcome = prepare(raw, sample, how)
                if isinstance(outcome, PreparedSample):
                    found.append(outcome)
                if sum(len(one.pictures) for one in found) >= num_images:
                    return found
    return found
