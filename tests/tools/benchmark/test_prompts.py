"""Steps behind kept prompts: as long, as large and as equal as is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from oneflow_dist.config import Config, write_config
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.forward import Forward
from oneflow_dist.model.oneflow import OneFlow
from tests.launching import Launcher, only_error
from tests.messages import naming
from tools.benchmark import blocks, prompts
from tools.benchmark.prompts import (
    ALL,
    DIFFERENCE,
    FIRST,
    KEPT,
    KIB,
    RATIO,
    ROWS_ALL,
    ROWS_KEPT,
    WRITTEN,
    Case,
    ask,
    canvas_behind,
    largest_difference,
    measure,
    random_model,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def small(make_config: Callable[..., Config]) -> Config:
    return make_config("model.prompt_sees=prompt")


@pytest.fixture(scope="module")
def model(small: Config) -> OneFlow:
    return random_model(small, CPU)


def test_each_number_of_documents_stands_behind_each_prompt_and_one_is_guided(
    model: OneFlow, small: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "SECONDS", 0.0)
    series = measure(model, small, [16, 40], [1, 2]).series
    cases = [f"{who} x {rows}" for rows in (16, 40) for who in ("1", "2", "1 guided")]
    assert all(list(named) == cases for named in series.values())
    for what in (FIRST, KEPT, ALL):
        assert [len(values) for values in series[what].values()] == [prompts.FEWEST] * len(cases)
    for case in cases:
        assert 0.0 <= series[DIFFERENCE][case][0] < 1e-4
        assert series[RATIO][case][0] > 0.0
    of_row = 2 * 2 * 2 * 8 * 4 / 1024  # layers, keys and values, heads, width, bytes
    assert [series[KIB][f"2 x {rows}"] for rows in (16, 40)] == [[16 * of_row], [40 * of_row]]
    assert [series[ROWS_KEPT][case][0] for case in cases[3:5]] == [WRITTEN, 2 * WRITTEN]
    assert [series[ROWS_ALL][case][0] for case in cases[3:5]] == [WRITTEN + 40, 2 * (WRITTEN + 40)]
    assert series[ROWS_KEPT]["1 guided x 40"][0] > WRITTEN  # the copy's


def test_half_of_a_prompt_is_images_where_they_fit(small: Config, tokenizer: Tokenizer) -> None:
    for rows, num_given in ((8, 0), (10, 0), (11, 1), (41, 4)):  # each is five rows
        canvas = canvas_behind(rows, small, tokenizer, 0)
        assert canvas.num_rows == rows + WRITTEN
        assert (~canvas.making["image"].is_target).sum() == num_given
        assert canvas.making["image"].is_moving.sum() == 1


def test_without_what_can_be_generated_there_is_text_alone(small: Config, tokenizer: Tokenizer) -> None:
    text = replace(small, modality={})
    canvas = canvas_behind(20, text, tokenizer, 0)
    assert len(canvas.tokens) == canvas.num_rows == 20 + WRITTEN


def test_an_image_longer_than_what_is_written_has_all_its_rows(
    make_config: Callable[..., Config], tokenizer: Tokenizer
) -> None:
    wide = make_config("modality.image.shape=[40, 40]")  # of a hundred patches
    assert canvas_behind(20, wide, tokenizer, 0).num_rows == 20 + 1 + 1 + 100


def test_keys_that_are_wrong_are_no_measurement(
    model: OneFlow, small: Config, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case([canvas_behind(16, small, tokenizer, 0)], small.sampling)
    kept, anew = (ask(Forward(model, "prompt", keeps), case) for keeps in (True, False))
    assert largest_difference(kept, anew, case.canvases) < 1e-4
    joined = Forward._joined_keys

    def slightly_off(self: Forward, names: list[tuple[str, str]]) -> torch.Tensor | None:
        keys = joined(self, names)
        return None if keys is None else 1.1 * keys

    monkeypatch.setattr(Forward, "_joined_keys", slightly_off)
    with pytest.raises(RuntimeError, match=naming("prompts", "4 x 16")):
        measure(model, small, [16], [4])


def test_any_config_is_measured_with_prompts_that_see_themselves(
    launcher: Launcher, make_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(write_config(make_config("sampling.guidance={}")))
    options = ["--rows", "8", "--documents", "1", "--lengths", "70", "--steps=2", f"--output={tmp_path / 'out'}"]
    end = launcher.run("-m", "tools.benchmark", "prompts", config, "run.seed=3", *options)
    assert end.code == 0, end.stderr
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (result["config"]["model"]["prompt_sees"], result["config"]["run"]["seed"]) == ("prompt", 3)
    series = result["measured"]["series"]
    assert (next(iter(series[KEPT])), list(series[blocks.SECONDS])) == ("1 x 8", ["in blocks x 70", "whole x 70"])
    assert (tmp_path / "out" / "plot.png").exists()
    refused = launcher.run(
        "-m",
        "tools.benchmark",
        "prompts",
        config,
        "objective.kind=autoregressive",
        "heads.time_conditioning=none",
        *options,
    )
    assert refused.code == 2
    assert "model.prompt_sees" in only_error(refused)


def test_what_is_not_a_number_differs(model: OneFlow, small: Config, tokenizer: Tokenizer) -> None:
    case = Case([canvas_behind(16, small, tokenizer, 0)], small.sampling)
    said = ask(Forward(model, "prompt"), case)
    broken = replace(said, slot_hidden=said.slot_hidden.clone())
    broken.slot_hidden[-1] = torch.nan
    assert largest_difference(said, said, case.canvases) == 0.0
    assert not largest_difference(said, broken, case.canvases) <= prompts.LARGEST_DIFFERENCE
