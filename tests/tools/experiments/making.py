"""A small experiment as a file, and results as its tasks would write them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.experiments.reading import Experiment, load_experiment
from tools.experiments.results import Results

TEXT = """
title = "Small"
question = "Which is larger?"
method = "Both are measured."
finding = "It is {one@2:share} beside {two@2:share}."
[scale.cpu]
base = "configs/debug.toml"
settings = ["train.steps=4"]
[scale.h100]
base = "configs/oneflow_1b.toml"
settings = ["train.steps=1000"]
suite = "configs/suites/paper_table2.toml"
figures = ["coco_captions/cider"]
[arm.one]
[arm.two]
settings = ["optim.lr=1e-4"]
cpu = ["train.steps=5"]
h100 = ["train.steps=7"]
[arm.other]
variant = "reversed"
[arm.exact]
is_trained = false
is_large = false
[probe.written]
kind = "written"
title = "What is written"
arms = ["one", "two", "other"]
documents = 100
kinds = ["told"]
vary = "sampling.steps"
values = [1, 2]
[probe.exact]
kind = "exact"
title = "Exact heads"
arms = ["exact"]
kinds = ["gate"]
vary = "sampling.steps"
values = [1, 2]
seeds = 1
[figure.share]
title = "captions that are right"
probe = "written"
of = "told_right"
is_share = true
[figure.tv]
title = "total variation"
probe = "exact"
is_lower_better = true
[claim.larger]
says = "one is right more often than two"
source = "a test"
larger = "one@2:share"
smaller = "two@2:share"
"""


def write(folder: Path, text: str = TEXT, name: str = "small") -> Path:
    """The file of an experiment."""
    path = folder / f"{name}.toml"
    path.write_text(text)
    return path


def load(folder: Path, text: str = TEXT) -> Experiment:
    """An experiment from such a file."""
    return load_experiment(str(write(folder, text)))


def measured(arm: str, seed: int, rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """What a task has written; a row is a probe, x, the probe's figure and a value."""
    return {
        "experiment": "small",
        "arm": arm,
        "seed": seed,
        "training": {"steps": 4, "seconds": 2.0, "tflops": 0.5, "folder": "debug-1"},
        "measuring_seconds": 3.0,
        "machine": {"device": "a CPU", "cores": 2, "torch": "2", "python": "3", "commit": "abc", "date": "2026-01-02T"},
        "rows": [(probe, ("", x, figure, value)) for probe, x, figure, value in rows],
    }


def made_up(experiment: Experiment, ones: Sequence[float], twos: Sequence[float]) -> Results:
    """Shares of two arms after two steps, of a seed each."""
    found = [
        measured(arm, seed, [("written", 2.0, "told_right", value)])
        for arm, values in (("one", ones), ("two", twos))
        for seed, value in enumerate(values)
    ]
    return Results(experiment, tuple(found))
