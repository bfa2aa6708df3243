"""What documents take by counts, and seconds that follow from them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from oneflow_dist.config import Config, load_config
from oneflow_dist.planning.gpus import find_gpu
from oneflow_dist.planning.rates import Rates
from tools.benchmark.latency_plan import ANEW, CACHED, INSERTION, WAYS, Costs, Pass, Shape, case_of, passes_of, plan

TEXT = Shape(prompt=64, text=1000, images=0, image_rows=256, steps=40)


@pytest.fixture(scope="module")
def llama_1b(root: Path) -> Config:
    return load_config(root / "configs" / "oneflow_1b.toml")


@pytest.fixture(scope="module")
def costs(llama_1b: Config) -> Costs:
    return Costs.of(llama_1b, Rates.of(find_gpu("h100-80gb")))


def test_text_takes_a_forward_for_each_token_or_for_each_step() -> None:
    token_by_token, inserted = [*passes_of(CACHED, TEXT)], [*passes_of(INSERTION, TEXT)]
    assert len(token_by_token) == 1 + 1001  # the prompt; and <|eos|> is drawn, too
    assert sum(own.rows for own in token_by_token) == 64 + 1001
    assert [own.drawn for own in inserted] == [0] + [25] * 40
    assert sum(own.rows for own in inserted) == 64 + sum(1 + 25 * step for step in range(40))
    assert sum(own.rows for own in passes_of(ANEW, TEXT)) == sum(65 + place for place in range(1001))


def test_an_image_takes_its_steps_and_its_copy() -> None:
    shape = replace(TEXT, prompt=0, text=2, images=1, image_rows=9, steps=3)
    assert shape.order == [False, True, False]
    rows = [own.rows for own in passes_of(CACHED, shape)]
    assert rows == [1, 1, 1, 9, 9, 9, 9, 9, 1, 1]  # done it goes once more, then its copy, then its mark
    keys = [own.keys for own in passes_of(CACHED, shape)]
    assert keys == [1, 2, 3, 12, 12, 12, 12, 21, 22, 23]
    assert [own.patches for own in passes_of(INSERTION, shape)] == [0, 0, 9, 9, 9]  # it comes in the second step


def test_the_time_of_a_token_is_that_of_reading_the_weights(costs: Costs) -> None:
    """And of many rows that of multiplying them."""
    weights = costs.trunk + costs.unembedding
    assert costs.trunk == pytest.approx(973e6, rel=0.001)  # of Llama-3.2-1B
    one = Pass(rows=1, keys=1, pairs=1, drawn=1)
    assert costs.work(one, 1) == pytest.approx(2 * weights / 2.65e12, rel=0.01)
    many = Pass(rows=4096, keys=4096, pairs=4096)
    products = 2 * costs.trunk * 4096 / 736e12
    assert products < costs.work(many, 1) < 1.3 * products
    assert costs.work(many, 4) == pytest.approx(4 * costs.work(many, 1))


def test_keys_and_values_are_read_for_each_document(costs: Costs) -> None:
    short, long = Pass(rows=1, keys=1, pairs=1), Pass(rows=1, keys=8193, pairs=8193)
    read = 2 * 2 * 8 * 64 * 16 * 8192  # bytes, keys and values, heads, width, layers, rows
    assert costs.work(long, 3) - costs.work(short, 3) == pytest.approx(3 * read / 2.65e12)


def test_a_plan_has_every_case_and_says_its_rates(llama_1b: Config) -> None:
    shapes = [replace(TEXT, images=images) for images in (0, 3)]
    planned = plan(llama_1b, find_gpu("h100-80gb"), shapes, [1, 8])
    cases = {case_of(way, shape, count) for way in WAYS for shape in shapes for count in (1, 8)}
    assert all(set(named) == cases for named in planned.series.values())
    seconds = planned.series["seconds by plan, h100-80gb"]
    assert seconds[case_of(INSERTION, TEXT, 1)][0] < 0.1 * seconds[case_of(CACHED, TEXT, 1)][0]
    assert seconds[case_of(CACHED, TEXT, 8)][0] < 1.2 * seconds[case_of(CACHED, TEXT, 1)][0]  # weights are read once
    assert "736 TFLOP/s" in planned.notes[0]
