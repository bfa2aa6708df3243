"""What tests of lanes and of streams share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from oneflow_dist.data.lanes import Lane

NUM_LANES = 4
BYTES = "data.tokenizer=bytes"
MakeLane = Callable[..., Lane]


def source(shards: str | Path, more: str = "tasks: {text_only: 1}", name: str = "pets") -> str:
    """A mixture of one source."""
    return f"{{{name}: {{shards: '{shards}', weight: 1, {more}}}}}"
