"""Losses on held-out documents that change with the weights alone: the same instants, noise and packs each time."""

# Shapes: p packs, K sums of each, see `pack_sums`.

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float64
from torch import Tensor

from oneflow_dist.config import Config
from oneflow_dist.containers import Counts, NoisySample, PackedBatch, Sample
from oneflow_dist.data.mixture import Source, load_mixture
from oneflow_dist.data.packing import pack, size_of
from oneflow_dist.data.shards import open_shards
from oneflow_dist.data.streams import SourceStream, capacity_of, read_document
from oneflow_dist.data.tokenizer import load_tokenizer
from oneflow_dist.flow.losses import compute_losses, where_scored
from oneflow_dist.flow.noising import is_deletable, keyed_generator
from oneflow_dist.flow.process import Process
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.optim import MovingAverage
from oneflow_dist.parallel.dealing import deal_pack
from oneflow_dist.process import process_of

BINS = 4  # of time, and of the share of a text that is missing
SEED = 0  # of order, latents and noise, however a model is trained
ONE = Counts.from_list([1] * len(Counts.zeros().to_list()))  # losses divided by it are sums


class Group(NamedTuple):
    """What all samples of a pack have in common: the model tells of its bags one sum for a pack."""

    source: str
    time: int  # bin of the text time; the last one has the complete texts, too
    missing: int  # 0: nothing is missing; then by quarters of the text


class Validation:
    """The packs of this rank, made once, and what all ranks say of a model with them."""

    def __init__(self, config: Config, rank: int, num_ranks: int, model: OneFlow, device: torch.device):
        """Read and noise the held-out documents; the data ranks take packs in turn.

        Raises:
            ValueError: the mixture, its shards or its documents cannot be used.
        """
        self.config, self.device = config, device
        self.rank, self.num_ranks, self.num_parts = rank, num_ranks, model.num_parts
        capacity = capacity_of(config) if config.train.compile or model.num_parts > 1 else None
        tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
        process = process_of(config, tokenizer.eos, tokenizer.mark)
        self.groups: list[Group] = []  # of all packs
        self.packs: dict[int, PackedBatch] = {}  # this rank's by number, and the first
        for source in load_mixture(config.validation.mixture):
            for group, samples in group_samples(source.name, draw_documents(config, source), process, config):
                number = len(self.groups)
                if number % num_ranks == rank or number == 0:
                    whole = pack(samples, capacity, config.flow.normalize, config.sees)
                    self.packs[number] = deal_pack(whole, model)
                self.groups.append(group)

    def is_due(self, step: int) -> bool:
        """Whether losses are measured after this step."""
        return step % self.config.validation.every_steps == 0 or step == self.config.train.steps

    def measure(self, model: OneFlow, ema: MovingAverage) -> dict[str, float]:
        """The values of the weights and of their average, by their names in metrics.jsonl; all ranks call together."""
        begin = time.perf_counter()
        values = {f"validation/{name}": value for name, value in self.losses(model).items()}
        with ema.applied(model):
            values |= {f"validation_ema/{name}": value for name, value in self.losses(model).items()}
        return {**values, "validation/seconds": time.perf_counter() - begin}

    def losses(self, model: OneFlow) -> dict[str, float]:
        """Of each source its losses, all and by bins; the same on every rank, which all call together."""
        sums = self.sum_packs(model).numpy()
        values: dict[str, float] = {}
        for source in dict.fromkeys(group.source for group in self.groups):
            own = [number for number, group in enumerate(self.groups) if group.source == source]
            of_source = name_losses([self.groups[number] for number in own], sums[own], self.config)
            values |= {f"{source}/{name}": value for name, value in of_source.items()}
        return values

    @torch.no_grad()
    def sum_packs(self, model: OneFlow) -> Float64[Tensor, "p K"]:
        """What `pack_sums` says of every pack, on the host of every rank.

        Each pack has a row, which one data rank fills: no layout adds its numbers in another order. Ranks that have no
        pack in the last turn look at the first once more, since all have to gather weights together.
        """
        rows: dict[int, Tensor] = {}
        for number in range(self.rank, -(-len(self.groups) // self.num_ranks) * self.num_ranks, self.num_ranks):
            is_there = number < len(self.groups)
            batch = self.packs[number if is_there else 0].to(self.device)
            sums = pack_sums(model, batch, self.config)
            if is_there:
                rows[number] = sums
        width = 2 + 2 * BINS * len(self.config.modality)
        table = torch.zeros(len(self.groups), width, dtype=torch.float64)
        if rows:
            table[list(rows)] = torch.stack(list(rows.values())).cpu()
        if self.num_ranks * self.num_parts > 1:
            dist.all_reduce(table)
        return table


def name_losses(groups: list[Group], sums: Float64[np.ndarray, "p K"], config: Config) -> dict[str, float]:
    """The losses of a source by name, with the weights of training; what nothing is of is left out."""
    text_sums, by_kind = sums[:, :2], sums[:, 2:].sum(0).reshape(-1, BINS, 2)
    values = {"text": text_sums.sum(0)}
    for number in range(BINS):
        values[f"text/time_{number}"] = text_sums[[group.time == number for group in groups]].sum(0)
    for number in range(BINS + 1):
        values[f"text/missing_{number}"] = text_sums[[group.missing == number for group in groups]].sum(0)
    for kind, by_time in zip(config.modality, by_kind, strict=True):
        values[f"velocity_{kind}"] = by_time.sum(0)
        values |= {f"velocity_{kind}/time_{number}": by_time[number] for number in range(BINS)}
    means = {name: float(total / number) for name, (total, number) in values.items() if number > 0.0}
    velocities = [m.loss_weight * means.get(f"velocity_{kind}", 0.0) for kind, m in config.modality.items()]
    return {"loss": means.get("text", 0.0) + sum(velocities), **means}


def pack_sums(model: OneFlow, batch: PackedBatch, config: Config) -> Float64[Tensor, "K"]:
    """Sums over a pack, on its device.

    text loss, what it is divided by; then of each modality the squares in each bin of time, and their elements
    """
    prediction = model(batch)
    losses = compute_losses(
        prediction, batch, dataclasses.replace(ONE, moving_elements=(1,) * len(batch.pieces)), config
    )
    text = losses.zero.double() + losses.rate.double() + losses.bag.double()
    counts = batch.counts
    number = counts.open_slots if config.flow.normalize == "batch" else counts.text_sequences
    sums = [text, text.new_tensor(number)]
    for velocity, pieces in zip(prediction.velocity, batch.pieces, strict=True):
        weight = pieces.patch_weight.double()
        error = where_scored(weight[:, None] > 0.0, velocity - pieces.velocity).double().square().sum(1)
        place = (pieces.time * BINS).long().clamp(max=BINS - 1)[pieces.patch_piece]
        for number in range(BINS):  # no scatter: on a GPU its order of addition is not fixed
            here = torch.where(place == number, weight, 0.0)
            sums += [(here * error).sum(), here.sum() * velocity.shape[1]]
    return torch.stack(sums)


def draw_documents(config: Config, source: Source) -> list[Sample]:
    """The first `validation.samples` documents of a source in an order of its own, each for one of its tasks.

    Raises:
        ValueError: there is none.
    """
    data = dataclasses.replace(
        config.data, packs_per_step=1, overlong="window" if config.data.overlong == "window" else "drop"
    )
    config = dataclasses.replace(config, data=data, run=dataclasses.replace(config.run, seed=SEED))
    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    shards = open_shards(source.name, source.shards, source.index)
    stream = SourceStream(source, shards, 0, config, tokenizer, read_document)
    found: list[Sample] = []
    for draw in range(len(shards)):
        if len(found) < config.validation.samples and (sample := stream.clean_sample_at(draw)) is not None:
            found.append(sample)
    if not found:
        raise ValueError(
            f"validation.mixture: {config.validation.mixture}, source {source.name}: its filters, max_images or "
            "data.max_sample_rows leave out every document; change those or take the source out"
        )
    return found


def group_samples(
    source: str, documents: list[Sample], process: Process, config: Config
) -> Iterator[tuple[Group, list[NoisySample]]]:
    """Every document once in each bin of time, in the packs of groups; a pack comes when it is full, or at the end."""
    capacity = capacity_of(config)
    room = np.array(dataclasses.replace(capacity, sequences=capacity.sequences - 1).to_list())
    waiting: dict[Group, list[NoisySample]] = defaultdict(list)
    for time_bin in range(BINS):
        for number, sample in enumerate(documents):
            noisy = look_at(sample, time_bin, number, len(documents), process)
            group = group_of(source, sample, noisy)
            if waiting[group] and (np.array(size_of([*waiting[group], noisy]).to_list()) > room).any():
                yield group, waiting.pop(group)
            waiting[group].append(noisy)
    yield from sorted(waiting.items())


def look_at(sample: Sample, time_bin: int, number: int, num_documents: int, process: Process) -> NoisySample:
    """A document at an instant in a bin of time.

    Of n documents the `number`-th falls into the n-th part of the bin that has its number, so that all together cover
    it evenly. Independent pieces have times in another bin, by turns: over the bins they come into each once, too, and
    what the text lacks says nothing of how clean a piece is.
    """
    rng = keyed_generator(SEED, time_bin, f"validation of {sample.key}")
    spans = [
        ((own + number / num_documents) / BINS, (own + (number + 1) / num_documents) / BINS)
        for own in (time_bin, (time_bin + number) % BINS)
    ]
    return process.look_at(sample, rng, *spans)


def group_of(source: str, sample: Sample, noisy: NoisySample) -> Group:
    """Where the losses of a sample's text belong."""
    num_missing, num_all = round(float(noisy.bags.missing_count.sum())), int(is_deletable(sample).sum())
    missing = 0 if num_missing == 0 else 1 + min(BINS - 1, num_missing * BINS // num_all)
    return Group(source, min(BINS - 1, int(noisy.text_time * BINS)), missing)
