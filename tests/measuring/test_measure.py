"""One measurement, in this process and as a program."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from oneflow_dist.config import Config
from oneflow_dist.measuring.measure import make_batch, measure_peer, measure_training, plan_training
from oneflow_dist.model.flops import num_parameters, step_flops
from oneflow_dist.model.oneflow import OneFlow
from tests.launching import Finished, Launcher, run_python

CPU = torch.device("cpu")
SMALL = ("data.rows_per_pack=512", "data.tokens_per_pack=512", "train.precision='bf16'")
PEER = ("data.rows_per_pack=256", "data.tokens_per_pack=256", "model.vocab_size=384", "train.compile=false")


def run(result: Path, config: str, kind: str) -> Finished:
    settings = {"config": config, "overrides": [], "steps": 1}
    job: dict[str, Any] = {"name": "a job", "kind": kind, "overrides": []}
    task = {"job": job, "settings": settings, "result": str(result)}
    return run_python("-m", "oneflow_dist.measuring.measure", json.dumps(task))


def test_numbers_go_to_the_result_file(tmp_path: Path) -> None:
    end = run(tmp_path / "result.json", "configs/debug.toml", "plan")
    assert end.code == 0
    assert json.loads((tmp_path / "result.json").read_text())["measured"]["peak_gib"] > 0.0


def test_an_error_goes_there_in_one_line_and_to_stderr_whole(tmp_path: Path) -> None:
    end = run(tmp_path / "result.json", "configs/no-such.toml", "plan")
    assert end.code == 1
    answer = json.loads((tmp_path / "result.json").read_text())
    assert answer == {
        "error": "ValueError: configs/no-such.toml: no such config file; "
        "configs/ has the ones that come with the project"
    }
    assert "Traceback" in end.stderr


def test_made_up_batches_are_full_and_the_same_for_the_same_number(make_config: Callable[..., Config]) -> None:
    config = make_config("data.bag_tokens_per_pack=4096", "data.tokens_per_pack=2048")
    first, again, other = (make_batch(config, number) for number in (0, 0, 1))
    assert first.counts.rows > 0.97 * config.data.rows_per_pack
    assert torch.equal(first.tokens, again.tokens)
    assert torch.equal(first.patches, again.patches)
    assert not torch.equal(first.tokens, other.tokens)


def measured(config: Config) -> dict[str, object]:
    return measure_training(config, 2, CPU)


def test_rates_count_what_the_batches_hold(launcher: Launcher, make_config: Callable[..., Config]) -> None:
    config = make_config(*SMALL)
    (result,) = launcher.call(1, measured, config)
    counts = [make_batch(config, number).counts for number in (0, 1)]
    seconds = sum(c.rows for c in counts) / result["rows_per_second"]
    assert 0.0 < seconds < 60.0
    assert result["documents_per_second"] * seconds == pytest.approx(sum(c.sequences for c in counts))
    assert result["tflops"] * seconds * 1e12 == pytest.approx(sum(step_flops(c, config) for c in counts))
    assert result["padding_share"] == pytest.approx(1.0 - sum(c.rows for c in counts) / (2 * 512))
    assert 0.0 < result["slots_with_logits_share"] < 1.0
    with torch.device("meta"):
        assert result["parameters"] == num_parameters(OneFlow(config))
    assert result["steps"] == 2
    assert result["peak_gib"] is None


def test_a_plan_is_the_sum_of_its_kinds(make_config: Callable[..., Config]) -> None:
    plans = [plan_training(make_config(*SMALL, f"train.activation_checkpointing={c}")) for c in ("none", "full")]
    for plan in plans:
        kinds = plan["by_kind"]
        assert isinstance(kinds, dict)
        assert plan["peak_gib"] == pytest.approx(sum(kinds.values()))
        assert kinds["average"] == pytest.approx(kinds["optimizer"] / 2, rel=0.01)
    none, full = (plan["by_kind"]["activations"] for plan in plans)  # type: ignore[index]
    assert full < none


def measured_peer(config: Config) -> dict[str, float]:
    return measure_peer(config, 4, True, 2, CPU)


def test_its_rates_count_every_token(launcher: Launcher, make_config: Callable[..., Config]) -> None:
    (result,) = launcher.call(1, measured_peer, make_config(*PEER))
    assert result["rows_per_second"] == pytest.approx(64 * result["documents_per_second"])
    linear = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48) + 32 * 384  # of two layers, and the logits
    pairs = 4 * 64**2 / 2
    flops = 3 * 2 * 256 * linear + 3.5 * 4 * 32 * 2 * pairs
    assert result["tflops"] * 1e12 == pytest.approx(flops * result["rows_per_second"] / 256)
    assert result["tflops_by_its_own_formula"] > result["tflops"]  # it counts all of the causal attention
    assert result["parameters"] > 2 * 384 * 32
