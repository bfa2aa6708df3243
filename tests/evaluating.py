"""A small suite of digits, and a run of a few steps that answers it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.evaluation.answers import PICTURES, Answer, Part, encode_png
from oneflow_dist.evaluation.suite import Suite, load_suite
from tests.launching import Launcher, Run, made_once, oneflow
from tools.interleaved.make import write_counting


@pytest.fixture(scope="session")
def counting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The counting part of the interleaved benchmark, of six items."""

    def write(folder: Path) -> Path:
        write_counting(folder, 6)
        return folder

    return made_once("counting", write, tmp_path_factory)


@pytest.fixture(scope="session")
def suite_text(digits: Path, counting: Path) -> str:
    """Tasks of every way to ask."""
    pairs = f"path = '{digits}/single-heldout-*.tar'\ntrained_on = '{digits}/single-train-*.tar'"
    labelled = f"labelled = '{counting}/labelled'"
    return f"""
[task.paint]
source = "shards"
{pairs}
{labelled}
prompt = "{{caption}}<|image|>"
count = 7
group = 3
sampling = ["steps=3"]
scores = ["labels"]

[task.describe]
source = "shards"
{pairs}
{labelled}
prompt = "{{picture}}"
count = 5
group = 2
repeats = 2
sampling = ["steps=3"]
scores = ["labels", "captions"]

[task.count]
source = "items"
path = '{counting}/items.jsonl'
{labelled}
held_out = '{digits}/count-heldout-*.tar'
group = 2
sampling = ["steps=3"]
keeps_states = true
scores = ["counting"]

[task.choose]
source = "shards"
{pairs}
prompt = "{{picture}}"
count = 3
answer = "bound"
choices = ["a handwritten one", "the digit two"]
scores = ["exact"]
"""


@pytest.fixture(scope="session")
def suite_path(suite_text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("suite") / "small.toml"
    path.write_text(suite_text)
    return path


@pytest.fixture(scope="session")
def suite(suite_path: Path) -> Suite:
    return load_suite(suite_path)


@pytest.fixture(scope="session")
def evaluated(launcher: Launcher, unbroken: Run, suite_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The suite's answers and report, by one process."""

    def evaluate(folder: Path) -> Run:
        out = folder / "out"
        return Run(
            out,
            launcher.run(*oneflow("evaluate"), unbroken.folder, "--suite", suite_path, "--output", out),
        )

    return made_once("evaluated", evaluate, tmp_path_factory)


@pytest.fixture
def make_answer(tmp_path: Path) -> Callable[..., Answer]:
    """An answer from texts and pictures, which are written."""

    def make(key: str, *parts: str | np.ndarray, number: int = 0, **known: int) -> Answer:
        found = []
        for place, part in enumerate(parts):
            if isinstance(part, str):
                found.append(Part(text=part))
            else:
                name = f"{key}.{number}-{place}.png"
                (tmp_path / PICTURES).mkdir(exist_ok=True)
                (tmp_path / PICTURES / name).write_bytes(encode_png(Image.fromarray(part)))
                found.append(Part(image=name))
        return Answer(key=key, number=number, parts=tuple(found), folder=tmp_path / PICTURES, **known)

    return make
