"""Guidance: what the model says of documents, taken beyond what it says of copies that know less."""

# Shapes: N slots, I pieces, P patches of the documents of one forward.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from oneflow_dist.containers import NoisySample, Prediction
from oneflow_dist.flow.noising import without_condition, without_prompt
from oneflow_dist.forward import Forward
from oneflow_dist.sampling import GUIDED_TEXT, SamplingConfig


class Copy(NamedTuple):
    """A document once more, knowing less."""

    original: int  # number of the document
    sample: NoisySample


def predict(
    forward: Forward, documents: list[NoisySample], kinds: Sequence[str], settings: Sequence[SamplingConfig], step: int
) -> Prediction:
    """What the model says of documents, guided; all of their copies go through the same forward.

    With c what it says of a document, u of its copy, and a weight w of each:

        zero_logit   u + w (c - u)        text: the copy has no prompt, and its slots are those of the document
        log_rate     u + w (c - u)
        tokens       u + w (c - u)        logits, which are linear in what is mixed here: the slots' hidden rows
        velocity     u + w (c - u)        for each modality: the copy is that of `weak_model`

    That is the geometric mixture of the two chances that nothing is missing, of the two rates, and of the two token
    distributions. At weights 1 and 0 the result is c and u to the bit. Nothing is copied for a weight of 1.

    Args:
        kinds: names of the modalities.
        settings: of each document.

    Raises:
        FloatingPointError: what the model says is not finite.

    Source: arXiv:2510.03506 Eq. 12 (text); arXiv:2207.12598 (velocities), arXiv:2404.07724 (a part of the times alone).
    """
    untold = [Copy(n, without_prompt(s)) for n, s in enumerate(documents) if _is_text_guided(s, settings[n])]
    weights = [_velocity_weights(sample, kinds, own) for sample, own in zip(documents, settings, strict=True)]
    is_guided = [any((of_kind != 1.0).any() for of_kind in of_sample) for of_sample in weights]
    weak = [Copy(n, _weaken(s, settings[n])) for n, s in enumerate(documents) if is_guided[n]]
    samples = [*documents, *(copy.sample for copy in (*untold, *weak))]
    of_copies = [(copy.sample.key, what) for copies, what in ((untold, "untold"), (weak, "weak")) for copy in copies]
    prediction = forward(samples, [*((s.key, "") for s in documents), *of_copies])
    _check_finite(prediction, kinds, step)

    slots = _pairs([s.is_open for s in samples], untold, len(documents))
    values = (prediction.zero_logit, prediction.log_rate, prediction.slot_hidden)
    num_slots = sum(len(s.tokens) for s in documents)
    num_guided = np.array([documents[n].is_open.sum() for n, _ in untold], dtype=np.int64)

    def weight_of(name: str, value: Tensor) -> Tensor:
        of_copies = np.array([settings[n].guidance.get(name, 1.0) for n, _ in untold])
        return torch.from_numpy(of_copies.repeat(num_guided)).to(value).reshape(-1, *[1] * (value.ndim - 1))

    zero_logit, log_rate, slot_hidden = (
        None if value is None else _mix(value, *slots, weight_of(name, value))[:num_slots]
        for name, value in zip(GUIDED_TEXT, values, strict=True)
    )
    assert slot_hidden is not None, "there is nothing else to say of text"
    velocities = []
    for number, velocity in enumerate(prediction.velocity):
        moving = [s.pieces[number].pieces.per_patch(s.pieces[number].is_moving) for s in samples]
        of_weak = []
        for n, _ in weak:
            of_patches = documents[n].pieces[number].pieces.per_patch(weights[n][number])
            of_weak.append(of_patches[moving[n]])
        weight = torch.from_numpy(np.concatenate([np.zeros(0), *of_weak])).to(velocity)
        patches = _pairs(moving, weak, len(documents), offset=len(untold))
        num_patches = sum(len(mask) for mask in moving[: len(documents)])
        velocities.append(_mix(velocity, *patches, weight[:, None])[:num_patches])
    return Prediction(
        zero_logit=zero_logit,
        log_rate=log_rate,
        bag_loss=prediction.bag_loss,
        velocity=tuple(velocities),
        slot_hidden=slot_hidden,
    )


def _is_text_guided(sample: NoisySample, sampling: SamplingConfig) -> bool:
    """Whether there is a weight for text, text that is being written, and a prompt that can be left out."""
    has_weight = any(sampling.guidance.get(name, 1.0) != 1.0 for name in GUIDED_TEXT)
    return has_weight and bool(sample.is_open.any()) and bool(sample.is_given[1:].any())


def _velocity_weights(
    sample: NoisySample, kinds: Sequence[str], sampling: SamplingConfig
) -> list[Float[np.ndarray, "_"]]:
    """For each modality the weight of each of its pieces: 1 where none moves, or where its time is not to be guided."""
    found = []
    for kind, noisy in zip(kinds, sample.pieces, strict=True):
        time = noisy.pieces.time
        is_guided = noisy.is_moving & (time >= sampling.guidance_from) & (time <= sampling.guidance_until)
        found.append(np.where(is_guided, sampling.guidance.get(kind, 1.0), 1.0))
    return found


def _weaken(sample: NoisySample, sampling: SamplingConfig) -> NoisySample:
    if sampling.weak_model == "entropy":
        return replace(sample, attention_scale=1.0 / sampling.weak_temperature)
    return without_condition(sample)


def _pairs(
    masks: list[np.ndarray], copies: list[Copy], num_documents: int, offset: int = 0
) -> tuple[Int64[Tensor, "m"], Int64[Tensor, "m"]]:
    """Where what is marked lies in the pack: of the originals of copies, and of the copies, which have as many marks.

    Args:
        masks: of all samples in the pack: the documents, then the copies, the first of these after `offset` others.
    """
    sizes = np.array([len(mask) for mask in masks])
    first = sizes.cumsum() - sizes
    own, other = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for number, copy in enumerate(copies, start=num_documents + offset):
        own.append(first[copy.original] + np.flatnonzero(masks[copy.original]))
        other.append(first[number] + np.flatnonzero(masks[number]))
    return torch.from_numpy(np.concatenate(own)), torch.from_numpy(np.concatenate(other))


def _mix(
    values: Float[Tensor, "_ *v"], own: Int64[Tensor, "m"], other: Int64[Tensor, "m"], weight: Float[Tensor, "m *w"]
) -> Float[Tensor, "_ *v"]:
    """`values` with `other + weight * (own - other)` in place of own: to the bit own at 1, and other at 0."""
    if len(own) == 0:
        return values
    own, other = own.to(values.device), other.to(values.device)
    return values.index_copy(0, own, torch.lerp(values[other], values[own], weight))


def _check_finite(prediction: Prediction, kinds: Sequence[str], step: int) -> None:
    parts = {name: getattr(prediction, name) for name in ("zero_logit", "log_rate", "slot_hidden")}
    parts |= {f"velocity of {kind}": velocity for kind, velocity in zip(kinds, prediction.velocity, strict=True)}
    for name, values in parts.items():
        if values is not None and not torch.isfinite(values).all():
            raise FloatingPointError(
                f"sampling step {step}: {name} of the model is not finite; its weights are broken, or too large for "
                "the dtype of its products: take an earlier checkpoint"
            )
