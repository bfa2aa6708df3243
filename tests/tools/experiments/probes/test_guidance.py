from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from oneflow_dist.config import load_config
from oneflow_dist.data.tokenizer import load_tokenizer
from oneflow_dist.model.oneflow import OneFlow
from tests.launching import ROOT, run_main
from tools.digits.judging import Writer
from tools.experiments.probes import guidance
from tools.experiments.probes.guidance import FIGURES, measure
from tools.experiments.reading import Experiment, Probe
from tools.experiments.rows import Subject
from tools.styles import make
from tools.styles.evaluate import WAYS

ASKED = Experiment(title="", question="", method="", finding="", scale={}, arm={}, probe={}, figure={}, claim={})
PROBE = Probe(kind="guidance", title="", documents=4, vary="weight", values=(1.0, 2.0))


def subject(seed: int) -> Subject:
    return Subject(experiment=ASKED, arm="all", seed=seed, folder=Path("run"))


@pytest.fixture
def writer(tmp_path: Path, make_model: Callable[..., OneFlow], monkeypatch: pytest.MonkeyPatch) -> Writer:
    """An untrained model of styles, in place of the run's."""
    run_main(make, tmp_path, "--documents", "8")
    small = ["model.width=32", "model.num_layers=1", "model.mlp_width=48", "sampling.steps=3", "sampling.max_rows=16"]
    config = load_config(ROOT / "configs/styles.toml", [*small, f"data.tokenizer={tmp_path}/words.tiktoken"])
    made = Writer(make_model(config, noise=0.1).eval(), config, load_tokenizer(config.data.tokenizer, config.modality))
    monkeypatch.setattr(guidance, "load_writer", lambda folder: made)
    return made


@pytest.mark.usefixtures("writer")
def test_captions_are_judged_in_every_way_with_every_weight() -> None:
    rows = list(measure(subject(0), PROBE))
    assert [(row.way, row.x, row.figure) for row in rows] == [
        (way, weight, figure) for way in WAYS for weight in PROBE.values for figure in FIGURES
    ]
    unguided = {way: [row.value for row in rows if (row.way, row.x) == (way, 1.0)] for way in WAYS}
    first, second = unguided.values()
    assert first == second
    assert list(measure(subject(0), PROBE)) == rows


def test_each_seed_writes_other_captions_of_the_same_pictures(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, int]] = []

    def write(self: Writer, name: str, prompts: list[object], seed: int) -> list[object]:
        asked.append((self.config.sampling.guidance["tokens"], seed))
        return []

    monkeypatch.setattr(Writer, "write", write)
    monkeypatch.setattr(guidance, "measure_texts", lambda texts, styles: dict.fromkeys(FIGURES, (0.5, 0.4, 0.6)))
    for seed in (0, 1):
        assert {row.value for row in measure(subject(seed), PROBE)} == {0.5}
    assert [weight for weight, _ in asked] == [1.0, 2.0] * 4
    assert len({seed for _, seed in asked}) == 2
    assert writer.config.sampling.guidance["tokens"] == 2.0  # that of the file
