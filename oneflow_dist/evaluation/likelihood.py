"""An upper bound of -log p(text), for any objective.

Of insertions at a rate h(t) E(t, slot) Q(t, slot, token), where the data have h(t) n, h the hazard of the schedule,
E the expected number of missing tokens of a slot and n how many of each really are missing (k of all tokens):

    -log p(text) <= E integral of h(t) sum over slots of ( E - k + sum over tokens of n log(n / (E Q)) ) dt

Heads have to know the time: else E is a mean over all times, and the bound is loose. Of next tokens it is the
likelihood itself, `<|eos|>` with it, and of masked ones the mean over times of what training makes small, with the
`<|eos|>` that fill a canvas.
"""

# Shapes: S samples of one pack.

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float64

from oneflow_dist.config import Config
from oneflow_dist.containers import NoisySample, PackedBatch, Sample
from oneflow_dist.data.packing import pack
from oneflow_dist.flow.noising import Noising, noise_at
from oneflow_dist.flow.process import Process
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.sampler import PACK_ROWS


def bound_text(
    model: OneFlow, config: Config, process: Process, sample: Sample, generators: Sequence[np.random.Generator]
) -> float:
    """Nats at most that the targets of a prepared sample need: the mean over as many instants as there are generators.

    The instants lie in equal parts of time, one in each. Samples that start with the same tokens and are looked at with
    the same random numbers differ by less noise than their bounds have.
    """
    if config.objective.looks_back:
        generators = generators[:1]  # all of the text at once: one look is exact
    instants, total = len(generators), 0.0
    at_once = max(1, PACK_ROWS // sample.num_rows)
    for first in range(0, instants, at_once):
        looks = [
            look_at([sample], instant, instants, config, process, generators[instant])
            for instant in range(first, min(instants, first + at_once))
        ]
        batch = pack([noisy for look, _ in looks for noisy in look], None, sees=config.sees)
        total += sum_bound(model, batch, np.array([hazard for _, hazard in looks]))
    return total / instants


def look_at(
    samples: Iterable[Sample],
    instant: int,
    instants: int,
    config: Config,
    process: Process,
    rng: np.random.Generator,
) -> tuple[list[NoisySample], float]:
    """Prepared samples at an instant in one of as many equal parts of time, and by what the integrand is multiplied."""
    if not config.objective.inserts:
        span = (instant / instants, (instant + 1) / instants)
        return [process.look_at(sample, rng, span) for sample in samples], 1.0
    # Parts of the chance that a token is kept: in its unit the hazard is 1 / (1 - chance), whatever the schedule.
    keep_prob = (instant + rng.random()) / instants
    noising = dataclasses.replace(Noising.of(config), averages_bags=False)
    text_time = float(noising.schedule.insertion_time(np.array([keep_prob]))[0])
    noisy = [
        noise_at(sample, text_time, [np.ones(len(given)) for given in sample.pieces], noising, rng)
        for sample in samples
    ]
    return noisy, 1.0 / (1.0 - keep_prob)


@torch.no_grad()
def sum_bound(model: OneFlow, batch: PackedBatch, hazards: Float64[np.ndarray, "S"]) -> float:
    """The integrand, in nats, of all samples of a pack together, each multiplied by its own number."""
    hazard = torch.from_numpy(hazards)[batch.token_sequence]  # of each slot
    weight = (batch.bag_weight * hazard[batch.bag_slot]).float()
    said = model(dataclasses.replace(batch, bag_weight=weight).to(next(model.parameters()).device))
    if said.zero_logit is None or said.log_rate is None:
        return float(said.bag_loss)
    is_open, count = batch.slot_weight > 0.0, batch.missing_count.double()
    expected = torch.sigmoid(-said.zero_logit.double().cpu()) * said.log_rate.double().cpu().exp()
    of_slot = torch.where(is_open, expected - count, 0.0)
    of_slot -= torch.where(count > 0.0, count * expected.clamp(min=1e-30).log(), 0.0)
    (slot, _), same = torch.stack([batch.bag_slot, batch.bag_tokens]).unique(dim=1, return_counts=True)
    of_slot.index_add_(0, slot, same.double() * same.double().log())
    return float((hazard * of_slot).sum()) + float(said.bag_loss)
