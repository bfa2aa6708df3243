"""The cost of a document, against what was derived for this method and against what torch counts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oneflow_dist.config import Config, load_config
from oneflow_dist.containers import Counts
from oneflow_dist.data.loader import PackLoader
from oneflow_dist.flow import noising
from oneflow_dist.model.flops import step_flops
from tools.benchmark.flops import (
    LAWS,
    OTHERS,
    Mean,
    autoregressive,
    count_groups,
    expected,
    measure,
    ratios_of,
    standard_error,
)

TEXT, INTERLEAVED = LAWS[False], LAWS[True]


@pytest.fixture(scope="module")
def llama_1b(root: Path) -> Config:
    return load_config(root / "configs" / "oneflow_1b.toml", ["flow.condition_dropout_prob=0"])


def drawn_mean(config: Config, *options: Any) -> Mean:
    return Mean.of_counts(sum(count_groups(config, *options), Counts.zeros()))


def ratio_of(config: Config, mean: Mean, rival: Mean, what: str) -> float:
    (value,) = ratios_of(config, mean, rival)[what]
    return value


def test_a_text_costs_what_was_derived_by_both_ways_of_counting(
    llama_1b: Config, unchecked: Callable[[], AbstractContextManager[None]]
) -> None:
    """512 tokens, times in [0, 1]; with logits at every slot and, as this code has them, at filled ones."""
    shape, rival = (512, 0, False), autoregressive(llama_1b, 512, 0)
    with unchecked():
        means = expected(llama_1b, *shape), drawn_mean(llama_1b, *shape, 20_000)
    for mean in means:
        assert ratio_of(llama_1b, mean, rival, "FLOPs, logits at every slot") == pytest.approx(0.503, rel=0.01)
        assert ratio_of(llama_1b, mean, rival, "FLOPs") == pytest.approx(0.433, rel=0.01)


@pytest.mark.parametrize(("length", "ratio"), [(2048, 0.510), (8192, 0.534)])
def test_so_does_a_long_one(llama_1b: Config, length: int, ratio: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Text times stand on a grid instead of being drawn, so that few documents are enough; the rest is drawn."""
    documents = 300
    times = iter((np.arange(documents) + 0.5) / documents)
    monkeypatch.setattr(noising, "draw_times", lambda *_: (next(times), [np.zeros(0)]))
    for mean in (expected(llama_1b, length, 0, False), drawn_mean(llama_1b, length, 0, False, documents)):
        actual = ratio_of(llama_1b, mean, autoregressive(llama_1b, length, 0), "FLOPs, logits at every slot")
        assert actual == pytest.approx(ratio, rel=0.01)


def test_an_image_that_stays_saves_half_of_the_text_alone(
    llama_1b: Config, unchecked: Callable[[], AbstractContextManager[None]]
) -> None:
    shape, rival = (256, 256, False), autoregressive(llama_1b, 256, 256)
    with unchecked():
        means = expected(llama_1b, *shape), drawn_mean(llama_1b, *shape, 8_000)
    for mean in means:
        assert ratio_of(llama_1b, mean, rival, "rows") == pytest.approx((128 + 256) / (256 + 256), rel=0.01)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "power"])
@pytest.mark.parametrize("image_rows", [0, 4])
def test_the_closed_form_is_the_mean_of_real_noising(
    make_config: Callable[..., Config],
    schedule: str,
    image_rows: int,
    unchecked: Callable[[], AbstractContextManager[None]],
) -> None:
    """Every schedule and law, condition dropout included: no term of it may be missing."""
    choices = f"flow.keep_schedule={schedule}", "flow.keep_exponent=3.0", "flow.condition_dropout_prob=0.4"
    config = make_config(*choices)
    for is_interleaved in LAWS:
        with unchecked():
            drawn = drawn_mean(config, 9, image_rows, is_interleaved, 8_000)
        closed = asdict(expected(config, 9, image_rows, is_interleaved))
        assert asdict(drawn) == {name: pytest.approx(value, rel=0.04) for name, value in closed.items()}


def test_means_of_a_text_are_those_of_the_paper_of_this_method(config: Config) -> None:
    """U[0, 1]: E n = L/2, E n^2 = L(2L + 1)/6, filled (L + 2)/6; U[0, 2]: 3L/4 and (L + 2)/12. One row is the first."""
    length = 100
    mean, late = (expected(config, length, 0, is_interleaved) for is_interleaved in (False, True))
    kept, squares = length / 2, length * (2 * length + 1) / 6
    assert mean.rows == mean.slots == pytest.approx(1 + kept)
    assert mean.pairs == pytest.approx(1 + 2 * kept + squares, rel=1e-6)
    assert (mean.filled, late.filled) == (pytest.approx((length + 2) / 6), pytest.approx((length + 2) / 12))
    assert late.rows == pytest.approx(1 + 3 * length / 4)


@pytest.mark.parametrize(
    "choice",
    [
        "modality.image.time_conditioning=added",
        "modality.image.time_conditioning=adaln",
        "train.activation_checkpointing=selective",
    ],
)
def test_torch_counts_in_each_part_what_the_formula_says(make_config: Callable[..., Config], choice: str) -> None:
    series = measure(make_config(choice), 30, 4, 256, 0).series
    for law in LAWS.values():
        counted = {part: value for part, (value,) in series[f"counted / formula, {law}"].items()}
        assert 0.0 < counted.pop(f"{OTHERS}, as a share of all") < 1.0
        assert counted == dict.fromkeys(
            ("attention projections", "attention pairs", "mlp", "logits"), pytest.approx(1.0)
        )


def test_a_full_step_has_as_many_documents_as_its_rows_hold(make_config: Callable[..., Config]) -> None:
    config = make_config("data.packs_per_step=3")
    numbers = measure(config, 50, 0, 10, 0).numbers
    assert numbers[f"documents of a full step, {TEXT}"] == pytest.approx(3 * config.data.rows_per_pack / 26)
    assert isinstance(numbers[f"TFLOP of a full step, {INTERLEAVED}"], float)


def test_the_standard_error_is_how_much_means_of_as_many_documents_scatter(
    config: Config, unchecked: Callable[[], AbstractContextManager[None]]
) -> None:
    with unchecked():
        groups = count_groups(config, 20, 0, False, 12_800)
    tenths = [groups[first : first + 40] for first in range(0, 400, 40)]
    means = [Mean.of_counts(sum(tenth, Counts.zeros())).rows for tenth in tenths]
    errors = [standard_error(config, tenth) for tenth in tenths]
    scatter = np.std(means, ddof=1) / np.mean(means)
    assert None not in errors
    assert 0.5 < scatter / np.mean(errors) < 2.0  # ten means know it to a quarter  # type: ignore[arg-type]
    assert standard_error(config, groups[:1]) is None


def test_steps_of_the_data_cost_what_their_packs_hold(make_config: Callable[..., Config]) -> None:
    config = make_config("data.packs_per_step=2")
    measured = measure(config, 9, 0, 32, 3)
    loader = PackLoader(config, 0, 1)
    packs = [batch.counts for _ in range(3) for batch in loader.next_step()]
    flops = sum(step_flops(counts, config) for counts in packs)
    assert measured.numbers["TFLOP of a step of the data"] == pytest.approx(flops / 3 / 1e12)
    (of_document,) = measured.series[f"GFLOP, {config.data.mixture}"]["all"]
    assert of_document == pytest.approx(flops / 1e9 / sum(counts.sequences for counts in packs))
