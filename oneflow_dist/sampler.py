"""Generation: text by insertion and images by flow, at once, many documents in one packed sequence."""

# Shapes: F slots that fire, v of the vocabulary on this rank, P patches of E elements of one forward, p of a document.

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from oneflow_dist.canvas import Canvas
from oneflow_dist.config import Config, SamplingConfig
from oneflow_dist.containers import NoisySample, PackedBatch, Prediction
from oneflow_dist.data.packing import pack, size_of
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.flow.noising import without_condition
from oneflow_dist.flow.schedule import KeepSchedule
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.model.tensor_axis import ALONE, TensorAxis


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerSettings:
    """How to generate."""

    steps: int  # N; the text is done after N, the last image after at most 2N
    guidance: float = 1.0  # on the velocity: 1 is the conditional model, 0 the unconditional one
    temperature: float = 1.0  # of the token distribution, which alone is sharpened
    top_k: int = 0  # draw from the k likeliest tokens; 0: from all
    top_p: float = 1.0
    max_rows: int = 512  # of one document
    pack_rows: int = 16384  # documents are packed to at most this for one forward

    def __post_init__(self) -> None:
        for name in ("steps", "temperature", "top_p", "max_rows", "pack_rows"):
            if not getattr(self, name) > 0:
                raise ValueError(f"sampling.{name}: {getattr(self, name)} must be positive")
        if self.top_k < 0:
            raise ValueError(f"sampling.top_k: {self.top_k} is negative; 0 draws from all tokens")

    @classmethod
    def from_config(cls, sampling: SamplingConfig) -> SamplerSettings:
        """The settings of [sampling]."""
        return cls(
            steps=sampling.steps,
            guidance=sampling.guidance,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            max_rows=sampling.max_rows,
        )


def generate(
    model: OneFlow, canvases: list[Canvas], settings: SamplerSettings, config: Config, tokenizer: Tokenizer
) -> list[Canvas]:
    """Finish the canvases, in place; `hit_cap` tells which of them were full."""
    for _ in generate_steps(model, canvases, settings, config, tokenizer):
        pass
    return canvases


def generate_steps(
    model: OneFlow, canvases: list[Canvas], settings: SamplerSettings, config: Config, tokenizer: Tokenizer
) -> Iterator[int]:
    """Generate, and stop after every step for whoever wants to look at the canvases.

    Each step is one forward for the images and the text of all documents:

        images  Y += min(dt, 1 - t) velocity                    their clocks start when they are inserted
        text    a slot fires if Bernoulli(1 - pi) and Bernoulli(min(1, q rate)), q the exact insertion probability
                of the step; it then gets one token of its distribution Q; an image token spawns noise

    Yields:
        The number of the step, from 1.

    Source: arXiv:2510.03506 Algorithms 1 and 2.
    """
    schedule = KeepSchedule(kind=config.flow.keep_schedule, exponent=config.flow.keep_exponent)
    device = next(model.parameters()).device
    step = 0
    while active := [canvas for canvas in canvases if not canvas.is_done]:
        step += 1
        for group in _groups(active, settings.pack_rows):
            _step_group(model, group, step, settings, schedule, tokenizer, device)
        yield step


@torch.no_grad()
def _step_group(
    model: OneFlow,
    canvases: list[Canvas],
    step: int,
    settings: SamplerSettings,
    schedule: KeepSchedule,
    tokenizer: Tokenizer,
    device: torch.device,
) -> None:
    """One step of the documents that go through one forward."""
    step_size = 1.0 / settings.steps
    snapshots = [canvas.snapshot() for canvas in canvases]
    guided = [s for s in snapshots if settings.guidance != 1.0 and s.image_is_scored.any()]
    batch = _pack_evenly(snapshots + [without_condition(s) for s in guided], model.axis.size).to(device)
    prediction = model(batch)

    num_slots = [len(s.tokens) for s in snapshots]
    fires = _draw_fires(canvases, prediction, num_slots, step_size, schedule, settings.max_rows)
    firing = torch.from_numpy(np.flatnonzero(np.concatenate(fires))).to(device)
    generators = [c.rng for c, fire in zip(canvases, fires, strict=True) for _ in range(int(fire.sum()))]
    tokens = _draw_tokens(model, prediction.slot_hidden[firing], generators, settings, tokenizer.vocab_size)

    velocities = guided_velocity(prediction.velocity.cpu(), snapshots, settings.guidance)
    first = 0
    for canvas, velocity, fire in zip(canvases, velocities, fires, strict=True):
        slots = np.flatnonzero(fire)
        own = tokens[first : first + len(slots)]
        first += len(slots)
        canvas.advance(velocity, step_size)
        canvas.insert(slots, own, step, tokenizer.image)


def _draw_tokens(
    model: OneFlow,
    slot_hidden: Float[Tensor, "F D"],
    generators: list[np.random.Generator],
    settings: SamplerSettings,
    vocab_size: int,
) -> Int64[np.ndarray, "F"]:
    """A token for each slot that fires, from the generator of its document.

    Logits are written only where some of them are to be left out.

    Args:
        vocab_size: of the tokenizer; the model may have room for more tokens.
    """
    device = slot_hidden.device
    if settings.top_k == 0 and settings.top_p >= 1.0:
        keys = np.array([rng.integers(2**63) for rng in generators], dtype=np.int64)
        noise_key = torch.from_numpy(keys).to(device)
        return model.draw_tokens(slot_hidden, noise_key, settings.temperature, vocab_size).cpu().numpy()
    draws = torch.tensor([rng.random() for rng in generators], dtype=torch.float64)
    logits = model.bag_logits(slot_hidden)
    first = model.axis.rank * logits.shape[1]
    logits[:, max(0, vocab_size - first) :] = -torch.inf
    kept = settings.temperature, settings.top_p, settings.top_k
    return sample_tokens(logits, draws, *kept, model.axis).cpu().numpy()


def _draw_fires(
    canvases: list[Canvas],
    prediction: Prediction,
    num_slots: list[int],
    step_size: float,
    schedule: KeepSchedule,
    max_rows: int,
) -> list[np.ndarray]:
    """Per document, which of its slots get a token in this step."""
    total = sum(num_slots)
    is_missing_prob = torch.sigmoid(-prediction.zero_logit[:total].double()).cpu().numpy()
    rate = prediction.log_rate[:total].double().exp().cpu().numpy()
    fires, first = [], 0
    for canvas, count in zip(canvases, num_slots, strict=True):
        own = slice(first, first + count)
        first += count
        q = schedule.insertion_prob(canvas.text_time, step_size) if canvas.is_writing else 0.0
        prob = is_missing_prob[own] * np.minimum(1.0, q * rate[own]) * canvas.is_open
        fire = canvas.rng.random(count) < prob
        fires.append(_within_cap(canvas, fire, max_rows))
    return fires


def _within_cap(canvas: Canvas, fire: np.ndarray, max_rows: int) -> np.ndarray:
    """Refuse what might make the document longer than `max_rows` (any token may be an image), and say so."""
    room = max(0, (max_rows - canvas.num_rows) // (1 + canvas.image.num_rows))
    if fire.sum() <= room:
        return fire
    canvas.hit_cap = True
    allowed = np.zeros_like(fire)
    allowed[np.flatnonzero(fire)[:room]] = True
    return allowed


def guided_velocity(
    velocity: Float32[Tensor, "P E"], snapshots: list[NoisySample], guidance: float
) -> list[Float32[np.ndarray, "p E"]]:
    """The velocity of each document's images, `v(empty) + guidance * (v(all) - v(empty))` for those that move.

    Args:
        velocity: of the images of all snapshots, then, if guidance is not 1, of those that move once more without
            their condition. `lerp` makes guidance 1 and 0 exact.
    """
    counts = [len(s.patches) for s in snapshots]
    conditional = velocity[: sum(counts)]
    if guidance != 1.0:
        moving = torch.from_numpy(
            np.concatenate([np.repeat(s.image_is_scored, s.grid.prod(axis=1)) for s in snapshots])
        )
        conditional[moving] = torch.lerp(velocity[sum(counts) :], conditional[moving], guidance)
    return [part.numpy() for part in conditional.split(counts)]


def sample_tokens(
    logits: Float32[Tensor, "F v"],
    draws: Float[Tensor, "F"],
    temperature: float,
    top_p: float,
    top_k: int = 0,
    axis: TensorAxis = ALONE,
) -> Int64[Tensor, "F"]:
    """A token for each row of logits, by the inverse of its cumulative distribution at `draws` in [0, 1).

    Over a tensor axis each rank has the logits of its part of the vocabulary, and only sums over them travel; all ranks
    get the same tokens.

    Args:
        top_p: keep the fewest tokens whose probabilities reach this part of the sum, and those as likely as the last of
            them; of what top_k has left.
        top_k: keep this many of the likeliest tokens, and those as likely as the last of them; 0 keeps all.
    """
    scaled = logits.double() / temperature
    log_total = axis.gather(scaled.logsumexp(-1)[None]).logsumexp(0)
    probs = (scaled - log_total[:, None]).exp()
    if top_k:
        probs = torch.where(probs >= _floor(probs, torch.ones_like(probs), top_k, axis)[:, None], probs, 0.0)
    if top_p < 1.0:
        wanted = top_p * axis.gather(probs.sum(-1)[None]).sum(0)
        probs = torch.where(probs >= _floor(probs, probs, wanted, axis)[:, None], probs, 0.0)
    cumulative = probs.cumsum(-1)
    mass = axis.gather(cumulative[None, :, -1])
    ends = mass.cumsum(0)  # of the ranks' parts
    target = _below(draws.to(ends) * ends[-1], ends[-1])
    holder = (target >= ends).sum(0)
    start = F.pad(ends[:-1], (0, 0, 1, 0))[axis.rank]
    own_target = _below(target - start, mass[axis.rank])
    choice = torch.searchsorted(cumulative, own_target[:, None], right=True).squeeze(-1)
    own_choice = torch.where(holder == axis.rank, choice + axis.rank * logits.shape[1], 0)
    return axis.gather(own_choice[None]).sum(0)


def _floor(
    probs: Float64[Tensor, "F v"],
    size: Float64[Tensor, "F v"],
    wanted: Float64[Tensor, "F"] | int,
    axis: TensorAxis,
) -> Float64[Tensor, "F"]:
    """The largest probability such that the sizes of those at least as large reach what is wanted.

    Bisection over the bits of a float64, which are in the order of its values; each rank looks up in its sorted part
    how much it has above a value.
    """
    ascending, order = probs.sort(-1)
    below = F.pad(size.gather(-1, order).cumsum(-1), (1, 0))
    low = torch.zeros(len(probs), dtype=torch.int64, device=probs.device)
    high = low + torch.ones((), dtype=torch.float64).view(torch.int64).item() + 1
    for _ in range(63):
        middle = (low + high) // 2
        index = torch.searchsorted(ascending, middle.view(torch.float64)[:, None])
        above = below[:, -1] - below.gather(-1, index).squeeze(-1)
        is_enough = axis.gather(above[None]).sum(0) >= wanted
        low, high = torch.where(is_enough, middle, low), torch.where(is_enough, high, middle)
    return low.view(torch.float64)


def _below(x: Tensor, limit: Tensor) -> Tensor:
    """`x`, but less than `limit` even where rounding took it there."""
    return torch.minimum(x, torch.nextafter(limit, torch.zeros_like(limit)))


def _pack_evenly(samples: list[NoisySample], multiple: int) -> PackedBatch:
    """A pack of these samples alone, whose rows a tensor axis can deal out."""
    size = size_of(samples)
    rows = -(-size.rows // multiple) * multiple
    return pack(samples, None if rows == size.rows else replace(size, rows=rows, sequences=size.sequences + 1))


def _groups(canvases: list[Canvas], pack_rows: int) -> Iterator[list[Canvas]]:
    """Documents that fit in one forward, in order; a larger one goes alone."""
    group: list[Canvas] = []
    rows = 0
    for canvas in canvases:
        if group and rows + canvas.num_rows > pack_rows:
            yield group
            group, rows = [], 0
        group.append(canvas)
        rows += canvas.num_rows
    if group:
        yield group
