"""A config whose packs have the room that the samples of its mixture need."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from oneflow_dist.config import load_config
from oneflow_dist.data.capacities import Suggestion, suggest
from oneflow_dist.files import write_whole
from oneflow_dist.prepare.recipe import GENEROUS, HELD_OUT_MIXTURE, Images, write_config
from oneflow_dist.prepare.settings import Options


def with_room_for(capacities: Mapping[str, int], held_out: Suggestion) -> dict[str, int]:
    """Capacities of packs that hold the longest held-out sample, too."""
    rows = held_out.longest_rows
    least = {name: rows for name in capacities if name.startswith("data.") and name != "data.sequences_per_pack"}
    least |= {name: most for name, most in held_out.overrides.items() if name.startswith("modality.")}
    return {name: max(value, least.get(name, 0)) for name, value in capacities.items()}


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
    if has_held_out:
        held_out = suggest(load_config(path, [f"data.mixture={json.dumps(str(options.output / HELD_OUT_MIXTURE))}"]))
        capacities = with_room_for(capacities, held_out)
    # Of large sets not every sample is measured: one that is longer than all of those is left out.
    write(capacities, "error" if suggested.num_measured >= suggested.num_samples else "drop")
    load_config(path)
    return Measured(capacities=capacities, padding=suggested.taken.padding)
