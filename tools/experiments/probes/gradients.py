"""How much the gradient of the text losses differs from one noising of the same documents to the next."""

# Shapes: P parameters, D draws.

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from oneflow_dist.config import Config
from oneflow_dist.containers import Sample
from oneflow_dist.data.mixture import load_mixture
from oneflow_dist.data.packing import pack
from oneflow_dist.data.tokenizer import load_tokenizer
from oneflow_dist.flow.losses import compute_losses
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.process import process_of
from oneflow_dist.trained import load_model
from oneflow_dist.validation import draw_documents
from tools.experiments.reading import Probe
from tools.experiments.rows import Row, Subject, ways_of

DRAWS = 24  # noisings of the same documents
SEED = 17


def measure(subject: Subject, probe: Probe) -> Iterator[Row]:
    """noise: E |g - E g|^2 / |E g|^2 of the text's gradient g, over noisings of `probe.documents` held-out documents.

    A way is a setting of flow.bags, at the weights of the same run.
    """
    model, config = load_model(subject.folder)
    documents = [
        sample
        for source in load_mixture(config.validation.mixture)
        for sample in draw_documents(of_size(config, probe.documents), source)
    ]
    for way, x, varied in ways_of(config, probe):
        yield Row(way, x, "noise", noise_of(model, varied, documents, subject.seed))


def of_size(config: Config, documents: int) -> Config:
    """So many documents of each source."""
    return dataclasses.replace(config, validation=dataclasses.replace(config.validation, samples=documents))


def noise_of(model: OneFlow, config: Config, documents: list[Sample], seed: int) -> float:
    """Of the text losses of these documents; a draw deletes the same tokens, whatever their bags."""
    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    process = process_of(config, tokenizer.eos, tokenizer.mark)
    weights = [weight for weight in model.parameters() if weight.requires_grad]

    def gradient(draw: int) -> Tensor:
        rngs = [np.random.default_rng([SEED, seed, draw, number]) for number in range(len(documents))]
        noisy = [process.noise(sample, rng) for sample, rng in zip(documents, rngs, strict=True)]
        batch = pack(noisy, None, sees=config.sees)
        losses = compute_losses(model(batch), batch, batch.counts, config)
        found = torch.autograd.grad(losses.zero + losses.rate + losses.bag, weights, allow_unused=True)
        return torch.cat([own.flatten() for own in found if own is not None]).double()

    return relative_variance(gradient(draw) for draw in range(DRAWS))


def relative_variance(draws: Iterable[Float64[Tensor, "P"]]) -> float:
    """Variance over the squared mean; the mean of few draws is itself noisy, which is taken out of its square."""
    total, squares, count = torch.zeros(()), 0.0, 0
    for draw in draws:
        total, squares, count = total + draw, squares + float(draw @ draw), count + 1
    mean_square = float(total @ total) / count**2
    variance = (squares - count * mean_square) / (count - 1)
    return variance / (mean_square - variance / count)
