from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from oneflow_dist.config import Config, load_config
from oneflow_dist.data.tokenizer import load_tokenizer
from oneflow_dist.model.oneflow import OneFlow
from tests.launching import ROOT
from tools.experiments.probes import prose
from tools.experiments.probes.prose import judge, learn, measure, read_tokens
from tools.experiments.reading import Experiment, Probe
from tools.experiments.rows import Subject
from tools.shards import write_shards

ASKED = Experiment(title="", question="", method="", finding="", scale={}, arm={}, probe={}, figure={}, claim={})
SENTENCES = [
    f"The {animal} eats the {food}." for animal in ("cat", "dog", "cow") for food in ("grass", "fish", "bread")
]


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    """A mixture of nine sentences."""
    write_shards(tmp_path, "texts", [{"txt": text} for text in SENTENCES])
    path = tmp_path / "mixture.yaml"
    path.write_text(f"sources:\n  texts: {{shards: '{tmp_path}/texts-*.tar', weight: 1, tasks: {{text_only: 1}}}}\n")
    return path


@pytest.fixture
def text_config(mixture: Path) -> Config:
    """Of a small model of bytes."""
    small = ["model.width=32", "model.num_layers=1", "model.mlp_width=48", "sampling.max_rows=32"]
    data = [f"data.mixture={mixture}", "data.tokenizer=bytes"]
    return load_config(ROOT / "configs/paragraphs.toml", [*small, *data])


def test_texts_are_judged_with_every_number_of_steps(
    text_config: Config, make_model: Callable[..., OneFlow], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(text_config, noise=0.02).eval()
    monkeypatch.setattr(prose, "load_model", lambda folder: (model, text_config))
    probe = Probe(kind="prose", title="", documents=3, vary="sampling.steps", values=(2.0, 4.0))
    subject = Subject(experiment=ASKED, arm="all", seed=0, folder=Path("run"))
    rows = list(measure(subject, probe))
    assert [(row.x, row.figure) for row in rows] == [
        (x, figure) for x in (2.0, 4.0) for figure in ("bits", "repeats", "runs", "tokens")
    ]
    found = {(row.x, row.figure): row.value for row in rows}
    assert all(found[x, "bits"] > 0.0 and 0.0 <= found[x, "runs"] <= 1.0 for x in (2.0, 4.0))
    assert list(measure(subject, probe)) == rows
    other = list(measure(dataclasses.replace(subject, seed=1), probe))
    assert other != rows


def test_training_text_is_likelier_than_what_shares_its_letters(mixture: Path) -> None:
    tokenizer = load_tokenizer("bytes")
    training = read_tokens(str(mixture), tokenizer)
    assert [bytes(tokens).decode() for tokens in training] == SENTENCES
    trigrams, known = learn(training, tokenizer)
    rng = np.random.default_rng(0)
    copied = judge(training, trigrams, known)
    shuffled = judge([rng.permutation(text).tolist() for text in training], trigrams, known)
    assert copied["runs"] == 1.0
    assert shuffled["runs"] < 0.2
    assert copied["bits"] + 2.0 < shuffled["bits"]
    assert copied["tokens"] == shuffled["tokens"] == np.mean([len(text) for text in SENTENCES])
    assert copied["repeats"] > 0.0  # "e t", of a verb and of an article
