from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from oneflow_dist.config import Config
from oneflow_dist.measuring.batches import make_batch
from oneflow_dist.measuring.training import measure_training, plan_training
from oneflow_dist.model.flops import num_parameters, step_flops
from oneflow_dist.model.oneflow import OneFlow
from tests.launching import Launcher

SMALL = ("data.rows_per_pack=512", "data.tokens_per_pack=512", "train.precision='bf16'")


def measured(config: Config) -> dict[str, object]:
    return measure_training(config, 2, torch.device("cpu"))


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
