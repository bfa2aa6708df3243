"""What is told with every table: how long and how different answers are, and what of them is copied from training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from PIL import Image

from oneflow_dist.evaluation.metrics.diversity import (
    compare_lengths,
    measure_copied,
    measure_distinct,
    nearest_pictures,
    nearest_texts,
)
from oneflow_dist.evaluation.scoring import Asked, Pictures, Scored, decode

SIDE = 16  # pixels of the thumbnails that are compared
RUN = 4  # words
MOST_TRAINING = 50_000  # samples of training that are looked at


@dataclass(frozen=True, slots=True)
class Training:
    """Texts and thumbnails of what a model was trained on."""

    texts: list[list[str]]
    pictures: Float32[np.ndarray, "m d"]


def score_originality(asked: Asked, scored: Scored) -> None:
    """Lengths and distinct n-grams of texts; and of all, what stands in the training data, if that is named."""
    texts = [answer.text.split() for answer in asked.answers]
    has_text = any(len(text) > 1 for text in texts)
    if has_text:
        for n in (1, 2):
            scored.measures[f"distinct_{n}"] = measure_distinct(texts, n)
        if all(item.fields.get(asked.task.truth) for item in asked.items):
            real = [len(references[0].split()) for references in asked.references]
            lengths = compare_lengths([len(text) for text in texts], real)
            scored.measures |= {"words": lengths.made, "words_distance": lengths.distance}
            scored.notes.append(f"references have {lengths.real.value:.2f} words")
    if asked.task.trained_on:
        training = read_training(asked.task.trained_on)
        if has_text and training.texts:
            score_copied_texts([text for text in texts if text], training, scored)
        if any(map(len, asked.made)) and len(training.pictures):
            score_copied_pictures(asked, training, scored)


def score_copied_texts(texts: list[list[str]], training: Training, scored: Scored) -> None:
    """Whole texts, and runs of words."""
    run = min(RUN, max(map(len, texts)))
    copies = nearest_texts(texts, training.texts, run)
    scored.measures |= {"copied_texts": copies.whole, f"copied_{run}_grams": copies.known}
    scored.measures["longest_copy"] = copies.longest


def score_copied_pictures(asked: Asked, training: Training, scored: Scored) -> None:
    """Pictures nearer to one of training than 95 of 100 held-out ones are, where there are such."""
    made = shrink(Pictures.join(asked.made))
    nearest = nearest_pictures(made, training.pictures)
    scored.notes.append(f"nearest training picture: median distance {np.median(nearest.distance):.4f}")
    held_out = Pictures.join(asked.given)
    if len(held_out):
        yardstick = nearest_pictures(shrink(held_out), training.pictures)
        scored.measures["copied_pictures"] = measure_copied(nearest, yardstick)
        scored.notes.append(
            f"of {len(held_out)} held-out pictures: {np.median(yardstick.distance):.4f}; copied_pictures would be .05"
        )


def read_training(pattern: str) -> Training:
    """The texts and pictures of shards, of at most so many samples.

    Raises:
        ValueError: there are none.
    """
    from oneflow_dist.data.decoding import read_fields, read_segments
    from oneflow_dist.data.shards import open_shards
    from oneflow_dist.data.tar import IMAGE_EXTENSIONS

    shards, texts, pictures = open_shards("trained_on", pattern), [], []
    for index in range(min(len(shards), MOST_TRAINING)):
        record = shards.read(index)
        segments = read_segments(record, read_fields(record))
        roles = {segment.role for segment in segments}
        own = [s.text for s in segments if s.text and (s.role == "assistant" or "assistant" not in roles)]
        texts.append(" ".join(own).split())
        names = [name for name in record.files if name.rpartition(".")[2] in IMAGE_EXTENSIONS]
        pictures.append(shrink([decode(record.files[name], f"{record.key}.{name}") for name in names]))
    return Training([text for text in texts if text], np.concatenate([shrink([]), *pictures]))


def shrink(pictures: Sequence[Image.Image]) -> Float32[np.ndarray, "n d"]:
    """Thumbnails as rows of numbers from 0 to 1."""
    rows = [np.asarray(p.convert("RGB").resize((SIDE, SIDE)), dtype=np.float32).ravel() / 255.0 for p in pictures]
    return np.stack(rows) if rows else np.zeros((0, 3 * SIDE * SIDE), dtype=np.float32)
