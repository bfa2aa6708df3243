"""What generation asks of an objective, and what it tells of a step."""

# Shapes: n tokens, k of them inserted, r removed, F slots, p patches of E elements of one document.

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64, Shaped
from torch import Tensor

from oneflow_dist.canvas import Canvas
from oneflow_dist.containers import NoisySample, Prediction
from oneflow_dist.sampling import SamplingConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What one step did to one document: tokens were inserted, then some were taken back by a correction."""

    place: Int64[np.ndarray, "k"]  # of each inserted token, when all of them are there
    token: Int64[np.ndarray, "k"]
    prob: Float[np.ndarray, "k"]  # of the token, as the model says for its slot: before temperature, top_k and top_p
    removed: Int64[np.ndarray, "r"]  # places of those taken back, before any of them goes
    text_time: float
    piece_times: dict[str, Float[np.ndarray, "_"]]  # by modality, of all its pieces in reading order

    @classmethod
    def of(
        cls,
        canvas: Canvas,
        place: Int64[np.ndarray, "k"],
        token: Int64[np.ndarray, "k"],
        prob: Float[np.ndarray, "k"],
        removed: Int64[np.ndarray, "r"],
    ) -> Change:
        """To a document that is as it is after the step."""
        times = {kind: np.minimum(1.0, making.pieces.time) for kind, making in canvas.making.items()}
        own = {"place": place, "token": token, "prob": prob, "removed": removed}
        return cls(**own, text_time=canvas.text_time, piece_times=times)


@runtime_checkable
class Writer(Protocol):
    """One objective's way to write, with one choice of settings; documents of several may share a forward."""

    sampling: SamplingConfig

    def begin(self, canvas: Canvas) -> None:
        """Make a canvas ready, or refuse it.

        Raises:
            ValueError: this objective cannot write what is asked for.
        """

    def snapshot(self, canvas: Canvas) -> NoisySample:
        """What the network sees of a document, as in training."""

    def step(self, canvases: list[Canvas], samples: list[NoisySample], prediction: Prediction) -> list[Change]:
        """Write on, in place; each canvas has counted this step already.

        Args:
            samples: the snapshots of which the prediction speaks.
        """

    def goes_on(self, canvas: Canvas) -> bool:
        """Whether a document whose clocks have come to their ends has something to come; it is ready for that then."""

    def steps_left(self, canvas: Canvas) -> int:
        """At most, or where nobody knows, as many as it looks like."""


def step_size(canvas: Canvas, sampling: SamplingConfig) -> float:
    """How far the text of a document goes in its next step, along its grid; 0 when it is done."""
    left_after = max(0.0, sampling.steps_after(canvas.text_time) - 1.0)
    return 1.0 - (left_after / sampling.steps) ** sampling.time_power - canvas.text_time


def say_of(prediction: Prediction, samples: list[NoisySample], those: slice) -> Prediction:
    """What a prediction says of some of its documents, which lie side by side."""
    if len(samples[those]) == len(samples):
        return prediction
    before, own = samples[: those.start], samples[those]

    def part(values: Shaped[Tensor, "_ *v"], size_of: Callable[[NoisySample], int]) -> Shaped[Tensor, "_ *v"]:
        first = sum(map(size_of, before))
        return values[first : first + sum(map(size_of, own))]

    def patches_of(sample: NoisySample, kind: int) -> int:
        return len(sample.pieces[kind].pieces.patches)

    of_tokens = functools.partial(part, size_of=lambda sample: len(sample.tokens))
    return replace(
        prediction,
        zero_logit=None if prediction.zero_logit is None else of_tokens(prediction.zero_logit),
        log_rate=None if prediction.log_rate is None else of_tokens(prediction.log_rate),
        velocity=tuple(
            part(velocity, functools.partial(patches_of, kind=kind))
            for kind, velocity in enumerate(prediction.velocity)
        ),
        slot_hidden=of_tokens(prediction.slot_hidden),
    )


def velocities_of(samples: list[NoisySample], prediction: Prediction) -> list[list[Float32[np.ndarray, "p E"]]]:
    """Of each document, for each modality, on the host."""
    parts = []
    for number, velocity in enumerate(prediction.velocity):
        counts = [len(sample.pieces[number].pieces.patches) for sample in samples]
        parts.append([part.numpy() for part in velocity.cpu().split(counts)])
    return [list(of_document) for of_document in zip(*parts, strict=True)] if parts else [[] for _ in samples]


def find_room(canvas: Canvas, tokens: Int64[np.ndarray, "F"], max_rows: int) -> Bool[np.ndarray, "F"]:
    """Which tokens the document has room for, rows of pieces counted; in random order, so that no side is favoured.

    What is only ever given is never inserted: its token has never been missing in training.
    """
    rows, may_appear = np.ones(len(tokens), dtype=np.int64), np.ones(len(tokens), dtype=bool)
    for making in canvas.making.values():
        is_piece = tokens == making.token
        rows[is_piece] += making.modality.num_rows
        may_appear[is_piece] = making.modality.is_target
    room = max_rows - canvas.num_rows
    fits = np.zeros(len(tokens), dtype=bool)
    for i in canvas.rng.permutation(len(tokens)):
        fits[i] = rows[i] <= room and may_appear[i]
        room -= rows[i] * fits[i]
    canvas.hit_cap |= not fits[may_appear].all()
    return fits
