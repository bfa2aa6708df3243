"""Documents of a forced length: rows are counted as they are computed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from oneflow_dist.canvas import blank_canvas
from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import Tokenizer
from tools.benchmark import blocks
from tools.benchmark.blocks import AS_MANY, BLOCKS, ROWS, SECONDS, STEPS, WHOLE, ends_of, grow, measure
from tools.benchmark.prompts import random_model

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def small(make_config: Callable[..., Config]) -> Config:
    return make_config("model.prompt_sees=prompt")


def test_rows_are_those_of_the_script(small: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "ENOUGH_SECONDS", 0.0)
    series = measure(random_model(small, CPU), small, [64, 130], steps=2).series
    rows, steps = ({name: values[0] for name, values in series[what].items()} for what in (ROWS, STEPS))
    for way in (BLOCKS, WHOLE, AS_MANY):
        assert (rows[f"{way} x 64"], steps[f"{way} x 64"]) == (1 + 32, 2)
    # A block has the row of the last token before it; in its first step the rows before that are computed, too.
    assert rows[f"{BLOCKS} x 130"] == (1 + 32) + (63 + 1 + 33) + (64 + 1 + 2)
    assert rows[f"{WHOLE} x 130"] == 1 + 65
    assert rows[f"{AS_MANY} x 130"] == sum(1 + 129 * step // 6 for step in range(6))
    assert [steps[f"{way} x 130"] for way in (BLOCKS, WHOLE, AS_MANY)] == [6, 2, 6]
    assert all(len(values) == blocks.FEWEST and min(values) > 0.0 for values in series[SECONDS].values())
    assert len(series[SECONDS]) == 4  # what is counted is not timed


def test_a_length_is_measured_again_while_there_is_time(small: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "ENOUGH_SECONDS", 1e9)
    series = measure(random_model(small, CPU), small, [20], steps=1).series
    assert [len(values) for values in series[SECONDS].values()] == [blocks.MOST] * 2
    assert [len(values) for values in series[ROWS].values()] == [1] * 3


@pytest.mark.parametrize(("length", "ends"), [(20, [20]), (64, [64]), (65, [64, 65]), (192, [64, 128, 192])])
def test_blocks_end_after_so_many_rows(length: int, ends: list[int]) -> None:
    assert ends_of(BLOCKS, length) == ends
    assert ends_of(WHOLE, length) == [length]


def test_tokens_appear_evenly_behind_what_is_finished(small: Config, tokenizer: Tokenizer) -> None:
    canvas = blank_canvas([65, 66, 67], tokenizer, small.modality, 0, 0)
    grow(canvas, 4, 9, tokenizer)  # all behind the last token
    before = canvas.tokens
    grow(canvas, 4, 12, tokenizer)
    grow(canvas, 4, 12, tokenizer)  # nothing is missing
    assert canvas.tokens[:4].tolist() == [tokenizer.bos, 65, 66, 67]
    assert len(canvas.tokens) == 12
    new = np.setdiff1d(np.arange(12), [0, 1, 2, 3, 5, 6, 8, 9, 11])
    assert canvas.tokens[np.setdiff1d(np.arange(12), new)].tolist() == before.tolist()
