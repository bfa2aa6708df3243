"""Checkpoints of models that were never trained, in which every parameter matters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from oneflow_dist.checkpoint import CheckpointWriter
from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import load_tokenizer
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.optim import AdamW, MovingAverage
from oneflow_dist.progress import Progress

Make = Callable[..., Path]


def save_untrained(config: Config, model: OneFlow) -> Path:
    """The run folder of a config, with one checkpoint after 7 steps."""
    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    data = {"tokenizer": tokenizer.sha256, "pieces": tokenizer.piece_of, "latents": {}, "working_folder": ""}
    sources = {"birds": {"shards": 2, "samples": 1234, "sha256": 64 * "a", "weight": 1.0, "reading": 64 * "b"}}
    writer = CheckpointWriter(config, model, AdamW(model, config.optim), MovingAverage(model, 0.5))
    writer.save(Progress(step=7, lanes={}, data={**data, "sources": sources}))
    return Path(config.run.folder)
