"""Made-up packs of the sizes that training has."""

from __future__ import annotations

import numpy as np

from oneflow_dist.config import Config
from oneflow_dist.containers import Images, NoisySample, PackedBatch, Sample
from oneflow_dist.data.packing import choose_samples, pack, size_of
from oneflow_dist.data.streams import capacity_of
from oneflow_dist.flow.noising import gaussian, keyed_generator, noise_sample
from oneflow_dist.flow.schedule import KeepSchedule


def make_batch(config: Config, number: int) -> PackedBatch:
    """A full pack of captioned images with random tokens and patches, noised as in training; the same for a number."""
    rng = keyed_generator(config.run.seed, number, "made-up samples")
    capacity, image = capacity_of(config), config.image
    schedule = KeepSchedule(kind=config.flow.keep_schedule, exponent=config.flow.keep_exponent)
    room = config.data.max_sample_rows - image.num_rows - 2
    noisy: list[NoisySample] = []
    while size_of(noisy).rows < 1.2 * capacity.rows:
        length = int(rng.integers(room // 4, room + 1))
        tokens = rng.integers(0, config.model.vocab_size, length + 2)
        sample = Sample(
            key=f"made-up/{len(noisy)}",
            tokens=tokens,
            is_target=np.arange(length + 2) > 0,
            images=Images(
                token=np.array([length + 1]),
                time=np.ones(1),
                grid=np.array([image.grid]),
                patches=gaussian(rng, (image.num_rows, image.patch_elements)),
            ),
            is_interleaved=False,
        )
        noisy.append(noise_sample(sample, schedule, 0.0, rng))
    chosen = choose_samples([size_of([sample]) for sample in noisy], capacity)
    return pack([noisy[index] for index in chosen], capacity, config.flow.normalize)
