"""Generation, timed: what is written does not change by it, and what is said of it is counted from the documents."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from oneflow_dist.config import Config, write_config
from oneflow_dist.data.tokenizer import load_tokenizer
from tests.launching import Launcher, Run, only_error
from tests.messages import naming
from tools.benchmark.sample import RATE, SECONDS, STEPS, first_model, measure, write

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def small(make_config: Callable[..., Config]) -> Config:
    return make_config("sampling.steps=12", "sampling.guidance={}")


def test_cases_are_every_batch_at_every_length(small: Config) -> None:
    rounds = 2
    measured = measure(first_model(small, CPU), small, [16, 24], [1, 3], rounds, is_trained=False)
    cases = ["1 x 16", "3 x 16", "1 x 24", "3 x 24"]
    assert sorted(measured.series[SECONDS]) == sorted(measured.series[STEPS]) == sorted(cases)
    for case in cases:
        seconds, single = measured.series[SECONDS][case], {k: v[case] for k, v in measured.series.items()}
        (steps,) = single["steps"]
        assert len(seconds) == rounds
        assert len(measured.series[STEPS][case]) == rounds * steps
        assert sum(measured.series[STEPS][case]) / 1e3 == pytest.approx(sum(seconds))
        assert measured.series[RATE][case] == pytest.approx([int(case[0]) / value for value in seconds])


def test_a_model_that_knows_nothing_fills_its_documents(small: Config) -> None:
    limited = replace(small, sampling=replace(small.sampling, max_rows=24))
    tokenizer = load_tokenizer(small.data.tokenizer, small.modality)
    canvases, seconds = write(first_model(small, CPU), limited, tokenizer, 3, CPU)
    assert all(canvas.is_done for canvas in canvases)
    assert max(canvas.num_rows for canvas in canvases) <= 24
    assert canvases[0].num_rows == 24  # of an empty prompt
    assert len(seconds) >= 12
    again, _ = write(first_model(small, CPU), limited, tokenizer, 3, CPU)
    assert [canvas.tokens.tolist() for canvas in canvases] == [canvas.tokens.tolist() for canvas in again]


def test_a_prompt_that_does_not_fit_is_refused(small: Config) -> None:
    prompts = replace(small, sampling=replace(small.sampling, prompts=("<|image|>",)))
    with pytest.raises(ValueError, match=naming("rows", 3)):
        measure(first_model(small, CPU), prompts, [3], [1], 1, is_trained=False)


def test_a_run_is_measured_with_its_own_config(launcher: Launcher, unbroken: Run, tmp_path: Path) -> None:
    words = ["sample", unbroken.folder, "--rounds=1", "--documents", "2"]
    end = launcher.run("-m", "tools.benchmark", *words, "--output", tmp_path)
    assert end.code == 0, end.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    most = result["config"]["sampling"]["max_rows"]
    assert list(result["measured"]["series"][STEPS]) == [f"2 x {most}"]
    assert "checkpoint" in result["measured"]["numbers"]["weights"]


def test_a_config_is_measured_with_first_weights_and_a_checkpoint_takes_no_overrides(
    launcher: Launcher, small: Config, tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text(write_config(small))
    command = "-m", "tools.benchmark", "sample"
    options = "sampling.steps=2", "--rounds=1", "--rows", "16", "--documents", "1", "--output", tmp_path / "out"
    end = launcher.run(*command, tmp_path / "config.toml", *options)
    assert end.code == 0, end.stderr
    refused = launcher.run(*command, tmp_path, "sampling.steps=2")
    assert refused.code == 2
    assert "sampling.steps=2" in only_error(refused)
