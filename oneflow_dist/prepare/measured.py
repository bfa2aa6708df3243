"""A config whose packs have the room that the samples of its mixture need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from oneflow_dist.config import load_config
from oneflow_dist.data.capacities import suggest
from oneflow_dist.files import write_whole
from oneflow_dist.prepare.recipe import GENEROUS, Images, write_config
from oneflow_dist.prepare.settings import Options


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Capacities of a config, and what of its packs stays empty."""

    capacities: dict[str, int]
    padding: float


def fit_config(
    path: Path,
    options: Options,
    images: Images,
    vocab_size: int,
    tokenizer: str,
    prompts: Sequence[str],
    has_held_out: bool,
) -> Measured:
    """Write a config with room for anything, measure the samples by it, and write it again with the room they need."""

    def write(capacities: dict[str, int], overlong: str) -> None:
        text = write_config(options, images, vocab_size, tokenizer, prompts, capacities, overlong, has_held_out)
        write_whole(path, text.encode())

    write(GENEROUS, "error")
    suggested = suggest(load_config(path))
    capacities = {**GENEROUS, **suggested.overrides}
    # Of large sets not every sample is measured: one that is longer than all of those is left out.
    write(capacities, "error" if suggested.num_measured >= suggested.num_samples else "drop")
    load_config(path)
    return Measured(capacities=capacities, padding=suggested.taken.padding)
