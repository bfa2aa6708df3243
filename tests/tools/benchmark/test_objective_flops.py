"""The cost of a document under each objective: packs against closed forms, and both against what was derived."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oneflow_dist.baselines import masked as masking
from oneflow_dist.config import Config, load_config
from oneflow_dist.containers import Counts
from oneflow_dist.flow import noising
from oneflow_dist.objective import Kind
from tools.benchmark import flops, objective_flops
from tools.benchmark.flops import LAWS, Mean, count_groups
from tools.benchmark.objective_flops import KINDS, can_learn, closed_form, over, plain_config
from tools.benchmark.result import Measured

TEXT, INTERLEAVED = LAWS[False], LAWS[True]
Unchecked = Callable[[], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def llama_1b(root: Path) -> Config:
    return load_config(root / "configs" / "oneflow_1b.toml")


def drawn_mean(config: Config, *options: Any) -> Mean:
    return Mean.of_counts(sum(count_groups(config, *options), Counts.zeros()))


@pytest.mark.parametrize(("length", "share"), [(512, 0.503), (2048, 0.510), (8192, 0.534)])
def test_insertion_costs_as_much_of_autoregression_as_was_derived(llama_1b: Config, length: int, share: float) -> None:
    """With logits at every slot; and at those where a token is missing .433 of 512 tokens."""
    inserted, rival = (
        closed_form(plain_config(llama_1b, kind), length, 0, False) for kind in ("insertion", "autoregressive")
    )
    everywhere = replace(inserted, filled=inserted.slots)
    assert over(llama_1b, everywhere, rival)["FLOPs"] == [pytest.approx(share, rel=0.01)]
    if length == 512:
        assert over(llama_1b, inserted, rival)["FLOPs"] == [pytest.approx(0.433, rel=0.01)]


@pytest.mark.parametrize("image_rows", [0, 256])
def test_packs_of_each_objective_hold_what_its_closed_form_says(
    llama_1b: Config, image_rows: int, monkeypatch: pytest.MonkeyPatch, unchecked: Unchecked
) -> None:
    """Text times stand on a grid instead of being drawn, so that few documents are enough; the rest is drawn."""
    documents, ages = 200, [np.full(int(image_rows > 0), 0.5)]
    for module in (noising, masking):
        times = iter((np.arange(10 * documents) + 0.5) / documents % 1.0)
        monkeypatch.setattr(module, "draw_times", lambda *_, own=times: (next(own), ages))
    for kind in KINDS:
        plain, shape = plain_config(llama_1b, kind), (512, image_rows, False)
        with unchecked():
            drawn = drawn_mean(plain, *shape, documents)
        ratios = over(plain, drawn, closed_form(plain, *shape))
        assert ratios == {name: [pytest.approx(1.0, rel=0.01)] for name in ratios}


@pytest.mark.parametrize("schedule", ["linear", "power"])
@pytest.mark.parametrize("image_rows", [0, 4])
@pytest.mark.parametrize("kind", ["autoregressive", "masked"])
def test_closed_forms_are_means_of_real_noising(
    make_config: Callable[..., Config], schedule: str, image_rows: int, kind: Kind, unchecked: Unchecked
) -> None:
    """Every schedule and law: no term may be missing."""
    plain = plain_config(make_config(f"flow.keep_schedule={schedule}", "flow.keep_exponent=3.0"), kind)
    for is_interleaved in LAWS:
        with unchecked():
            drawn = drawn_mean(plain, 9, image_rows, is_interleaved, 2_000)
        closed = asdict(closed_form(plain, 9, image_rows, is_interleaved))
        assert asdict(drawn) == {name: pytest.approx(value, rel=0.04) for name, value in closed.items()}


def test_closed_forms_are_those_that_were_derived(config: Config) -> None:
    length, rows = 100, 16
    seen = closed_form(plain_config(config, "autoregressive"), length, rows, False)
    num_rows = 1 + length + 1 + rows + 1  # the first, the text, the image and its mark; <|eos|> has none
    causal, ahead = num_rows * (num_rows + 1) / 2, rows * (rows - 1) / 2
    assert (seen.rows, seen.pairs, seen.filled) == (num_rows, causal + ahead, length + 1 + 1)
    hidden, late = (closed_form(plain_config(config, "masked"), length, 0, law) for law in LAWS)
    assert (hidden.rows, hidden.pairs) == (101, 101**2)
    assert [hidden.filled, late.filled] == pytest.approx([length / 2, length / 4])


def test_a_plain_config_has_the_same_trunk_and_nothing_that_no_closed_form_has(
    make_config: Callable[..., Config],
) -> None:
    config = make_config("flow.bags=averaged", "flow.prompt_dropout_prob=0.1", "model.prompt_sees=prompt")
    for kind in KINDS:
        plain = plain_config(config, kind)
        assert plain.objective.kind == kind
        assert (plain.flow.condition_dropout_prob, plain.flow.prompt_dropout_prob) == (0.0, 0.0)
        assert replace(plain.model, prompt_sees="prompt") == config.model


def test_all_objectives_stand_side_by_side_also_on_the_data(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, of_insertion = make_config(), Measured(series={"GFLOP": {"all": [1.0]}}, notes=["insertion"])
    monkeypatch.setattr(flops, "measure", lambda *_: of_insertion)
    measured = objective_flops.measure(config, 9, 4, 64, 1)
    for what in (TEXT, INTERLEAVED, config.data.mixture):
        costs = {kind: measured.series[f"GFLOP, {what}, {kind}"]["all"][0] for kind in KINDS}
        assert 0.0 < costs["insertion"] < min(costs["masked"], costs["autoregressive"])
    assert measured.series["GFLOP"] == {"all": [1.0]}
    assert measured.notes[0] == "insertion"


def test_an_objective_is_left_out_of_data_that_it_cannot_learn(config: Config, digits: Path, tmp_path: Path) -> None:
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text((digits / "mixture.yaml").read_text().replace("text_to_image: 1", "infill: 1"))
    other = replace(config, data=replace(config.data, mixture=str(mixture)))
    full = replace(config, model=replace(config.model, vocab_size=337))
    for kind in KINDS:
        assert can_learn(plain_config(config, kind))
        assert can_learn(plain_config(other, kind)) == (kind != "autoregressive")
        assert can_learn(plain_config(full, kind)) == (kind == "insertion")  # the only one without a mark
