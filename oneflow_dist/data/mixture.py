"""Which sources a run draws from, how much of each, and for which tasks: one YAML file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from oneflow_dist.data.decoding import TASKS


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One entry under `sources`."""

    name: str
    shards: str  # brace or wildcard pattern
    weight: float  # its part of the samples, relative to the other sources
    tasks: dict[str, float]  # task -> its part of the source's samples
    prompt: str = ""  # put before every sample


def load_mixture(path: str) -> tuple[Source, ...]:
    """Read and check a mixture.

    Raises:
        ValueError: no such file, not YAML, an unknown or missing key, a weight that is not positive, an unknown task.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such mixture file; set data.mixture")
    try:
        table = yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    sources = table.get("sources") if isinstance(table, dict) and len(table) == 1 else None
    if not isinstance(sources, dict) or not sources:
        raise ValueError(f"{path}: expected one key, `sources`, with a table of sources")
    return tuple(_read_source(path, name, entry) for name, entry in sources.items())


def _read_source(path: str, name: str, entry: Any) -> Source:
    where = f"{path}, source {name}"
    known = ("shards", "weight", "tasks", "prompt")
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: expected a table with {', '.join(known)}")
    for key in entry:
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}; known keys: {', '.join(known)}")
    for key in ("shards", "weight", "tasks"):
        if key not in entry:
            raise ValueError(f"{where}: {key} is missing")
    tasks = entry["tasks"]
    if not isinstance(tasks, dict) or not tasks:
        raise ValueError(f"{where}: tasks is {tasks!r}; expected a table of weights, as {{text_to_image: 1}}")
    for task in tasks:
        if task not in TASKS:
            raise ValueError(f"{where}: unknown task {task!r}; known tasks: {', '.join(TASKS)}")
    for what, weight in [("weight", entry["weight"]), *tasks.items()]:
        if not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise ValueError(f"{where}: {what} is {weight!r}; weights are positive numbers")
    return Source(
        name=name,
        shards=str(entry["shards"]),
        weight=float(entry["weight"]),
        tasks={task: float(weight) for task, weight in tasks.items()},
        prompt=str(entry.get("prompt", "")),
    )
