"""What a probe is given, and what it gives."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from oneflow_dist.config import Config, check_config, write_config
from oneflow_dist.toml import apply_override, read_tables
from tools.experiments.reading import Experiment, Probe


class Row(NamedTuple):
    """A number that was measured."""

    way: str  # of the probe, "" where it has one
    x: float | None  # one of the values that are varied
    figure: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An arm with a seed."""

    experiment: Experiment
    arm: str
    seed: int
    folder: Path  # of the run, or of a trained model; of nothing where the arm is not trained


def with_settings(config: Config, settings: tuple[str, ...]) -> Config:
    """A config with some section.key=value.

    Raises:
        ValueError: a key or value that cannot be.
    """
    table = tomllib.loads(write_config(config))
    for setting in settings:
        apply_override(table, setting)
    changed: Config = read_tables(Config, table)
    check_config(changed)
    return changed


def ways_of(config: Config, probe: Probe) -> Iterator[tuple[str, float | None, Config]]:
    """Every way with every value of what is varied: their names, and the config with them.

    What is varied is a key, or "forwards": as many steps as take so many forwards of a text, corrections among them.
    """
    for way, settings in (probe.ways or {"": ()}).items():
        own = with_settings(config, settings)
        for value in probe.values or (None,):
            if value is None:
                yield way, value, own
            elif probe.vary == "forwards":
                yield way, value, with_settings(own, (f"sampling.steps={steps_of(own, int(value))}",))
            else:
                yield way, value, with_settings(own, (f"{probe.vary}={value:g}",))


def steps_of(config: Config, forwards: int) -> int:
    """The most steps that take no more forwards than this; a correction takes those after its time again.

    Raises:
        ValueError: not even one step does.
    """
    sampling = config.sampling
    for steps in range(forwards, 0, -1):
        again = math.ceil(dataclasses.replace(sampling, steps=steps).steps_after(sampling.corrected_from))
        if steps + sampling.corrections * again <= forwards:
            return steps
    raise ValueError(f"forwards: {forwards} are too few for {sampling.corrections} corrections; name more")
