"""How long documents take that are written by insertion, and token by token, by their length; weights are random."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Literal

import numpy as np
import torch

from oneflow_dist.config import Config, load_config
from tools.benchmark.latency import FORWARDS, ROWS, SECONDS, shapes_of
from tools.benchmark.latency import measure as time_ways
from tools.benchmark.latency_plan import ANEW, CACHED, INSERTION, case_of
from tools.experiments.plan import settings_of
from tools.experiments.reading import ROOT, Probe
from tools.experiments.rows import Row, Subject

PROMPT, STEPS, ROUNDS = 64, 16, 3
FIGURES = {"seconds": SECONDS, "forwards": FORWARDS, "rows": ROWS}
NO_CACHE = "insertion without cache"


def measure(subject: Subject, probe: Probe) -> Iterator[Row]:
    """Seconds, forwards and rows of documents of `probe.values` text tokens behind a prompt.

    `probe.kinds` are numbers of images; a way is such a number and how the document is written. Insertion keeps the
    keys and values of the prompt (model.prompt_sees = "prompt"), or computes all anew in every step.
    """
    own = subject.experiment.arm[subject.arm]
    config = load_config(ROOT / own.base, list(settings_of(own, subject.experiment.scale["cpu"], "cpu")))
    texts = [int(value) for value in probe.values]
    for images in map(int, probe.kinds):
        keeping, anew = of_prompt(config, "prompt"), of_prompt(config, "all")
        for each, names in (
            (keeping, {INSERTION: INSERTION, CACHED: CACHED, ANEW: ANEW}),
            (anew, {INSERTION: NO_CACHE}),
        ):
            shapes = shapes_of(each, texts, [images], PROMPT, STEPS)
            series = time_ways(each, shapes, [1], ROUNDS, torch.device("cpu")).series
            for way, name in names.items():
                for text, shape in zip(texts, shapes, strict=True):
                    if (case := case_of(way, shape, 1)) in series[SECONDS]:
                        for figure, title in FIGURES.items():
                            value = float(np.median(series[title][case]))
                            yield Row(f"{name}, {images} images", float(text), figure, value)


def of_prompt(config: Config, sees: Literal["all", "prompt"]) -> Config:
    """The same where rows of the prompt see the prompt alone, or all."""
    return dataclasses.replace(config, model=dataclasses.replace(config.model, prompt_sees=sees))
