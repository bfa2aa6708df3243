"""Made-up packs of the sizes that training has."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from oneflow_dist.config import Config
from oneflow_dist.containers import NoisySample, PackedBatch, Sample
from oneflow_dist.data.choosing import choose_samples
from oneflow_dist.data.codec import cut_pieces
from oneflow_dist.data.packing import pack, size_of
from oneflow_dist.data.streams import capacity_of
from oneflow_dist.flow.noising import gaussian, keyed_generator
from oneflow_dist.modality import ModalityConfig, first_picture
from oneflow_dist.process import process_of


def picture_modality(config: Config) -> ModalityConfig:
    """Of the captioned images that are measured."""
    return config.modality[first_picture(config.modality, "captioned images")]


def make_batch(config: Config, number: int) -> PackedBatch:
    """A full pack of captioned images with random tokens and patches, noised as in training; the same for a number."""
    rng = keyed_generator(config.run.seed, number, "made-up samples")
    capacity, modality = capacity_of(config), picture_modality(config)
    shape = (modality.channels, *modality.shape)
    whole = replace(config, flow=replace(config.flow, condition_dropout_prob=0.0, prompt_dropout_prob=0.0))
    process = process_of(whole, eos=0, mark=config.model.vocab_size - 1)
    room = config.data.max_sample_rows - modality.num_rows - 2
    noisy: list[NoisySample] = []
    while size_of(noisy).rows < 1.2 * capacity.rows:
        length = int(rng.integers(room // 4, room + 1))
        tokens = rng.integers(0, config.model.vocab_size, length + 2)
        sample = Sample(
            key=f"made-up/{len(noisy)}",
            tokens=tokens,
            is_target=np.arange(length + 2) > 0,
            pieces=tuple(
                cut_pieces([gaussian(rng, shape)], [length + 1], each) if each is modality else cut_pieces([], [], each)
                for each in config.modality.values()
            ),
            is_interleaved=False,
        )
        noisy.append(process.noise(process.prepare(sample), rng))
    chosen = choose_samples([size_of([sample]) for sample in noisy], capacity)
    return pack([noisy[index] for index in chosen], capacity, config.flow.normalize, config.sees)
