"""MFU and HFU of what is known: one product, and a model whose FLOPs torch counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from oneflow_dist.config import Config
from oneflow_dist.containers import Counts
from oneflow_dist.model.flops import step_flops
from oneflow_dist.planning.batches import make_batch
from tools.benchmark.flops import count_parts
from tools.benchmark.timing import time_steps
from tools.benchmark.utilization import Peak, find_peak, hardware_flops, utilization

CPU = torch.device("cpu")


def test_a_model_that_is_one_product_has_the_mfu_of_its_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timed as steps are, by a clock on which a product takes 2 ms: what else the machine does has no say."""
    size, count, now = 512, 40, 0.0
    rows, weight = torch.randn(2, size, size)

    def step(_: int) -> None:
        nonlocal now
        torch.mm(rows, weight)
        now += 2e-3

    monkeypatch.setattr("tools.benchmark.timing.time.perf_counter", lambda: now)
    seconds, _ = time_steps(step, count, CPU)
    rate, peak = 2 * size**3 / 2e-3, Peak(123e9, "given")
    assert utilization(count * 2 * size**3, seconds, peak) == pytest.approx(rate / peak.flops)


def test_the_peak_of_several_devices_is_theirs_together() -> None:
    assert utilization(6e12, 2.0, Peak(1e12, "given"), num_devices=4) == 0.75


def test_a_device_that_no_vendor_speaks_of_is_measured_and_the_result_says_so() -> None:
    peak = find_peak(CPU)
    assert peak.flops > 1e8
    assert peak.source.startswith("measured: large product")


def test_a_gpu_of_the_table_has_its_vendors_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 80GB HBM3")
    peak = find_peak(torch.device("cuda"))
    assert (peak.flops, "vendor" in peak.source) == (989e12, True)


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
def test_hfu_counts_what_torch_counts(make_config: Callable[..., Config], checkpointing: str) -> None:
    """What activation checkpointing computes again, to the last product."""
    choice = f"train.activation_checkpointing={checkpointing}"
    config, plain = make_config(choice), make_config("train.activation_checkpointing=none")
    batch = make_batch(config, 0)
    full = replace(batch.counts, rows=batch.counts.padded_rows)  # padding is computed, too
    again = sum(count_parts(config, batch).values()) - sum(count_parts(plain, batch).values())
    assert hardware_flops(full, config) - step_flops(full, config) == again
    assert (again > 0.0) == (checkpointing != "none")


def test_causal_rows_are_computed_again_for_their_pairs(make_config: Callable[..., Config]) -> None:
    counts = replace(Counts.zeros(), attention_pairs=1000)
    config = make_config(
        "objective.kind=autoregressive", "heads.time_conditioning=none", "train.activation_checkpointing=full"
    )
    assert hardware_flops(counts, config) == pytest.approx((3.5 + 1.0) / 3.5 * step_flops(counts, config))
