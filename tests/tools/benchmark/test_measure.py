"""One measurement of training, ours and the peer's; as a program all are in the test of tools/measure_gpu.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from oneflow_dist.config import Config
from oneflow_dist.model.flops import num_parameters, step_flops
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.planning.batches import make_batch
from tests.launching import Launcher
from tests.tools.benchmark.links import Kept
from tools.benchmark.jobs import Job, jobs_of
from tools.benchmark.measure import STEPS, measure, measure_peer, measure_training
from tools.benchmark.timing import INPUT_SETS

CPU = torch.device("cpu")
SMALL = ("data.rows_per_pack=512", "data.tokens_per_pack=512", "train.precision='bf16'")
PEER = ("data.rows_per_pack=256", "data.tokens_per_pack=256", "model.vocab_size=384", "train.compile=false")


def job(**fields: Any) -> Job:
    return Job(name="ours, again", gib=1.0, compiles=1.0, **fields)


def measured(config: Config) -> list[dict[str, Any]]:
    link = Kept()
    measure_training(job(kind="ours", packs=(1, 4), is_profiled=True), config, link, CPU)
    return link.lines


def test_rates_count_what_the_batches_hold(launcher: Launcher, make_config: Callable[..., Config]) -> None:
    config = make_config(*SMALL)
    ((ready, result, of_four, kernels),) = launcher.call(1, measured, config)
    assert (ready["kind"], result["kind"], kernels["kind"]) == ("ready", "step", "kernels")
    assert (result["name"], result["packs"], of_four["packs"]) == ("ours", 1, 4)
    assert (result["steps"], of_four["steps"]) == (STEPS, STEPS // 4)
    counts = [make_batch(config, number % INPUT_SETS).counts for number in range(STEPS)]
    seconds = sum(c.rows for c in counts) / result["rows_per_second"]
    assert 0.0 < seconds < 120.0
    assert result["documents_per_second"] * seconds == pytest.approx(sum(c.sequences for c in counts))
    assert result["tflops"] * seconds * 1e12 == pytest.approx(sum(step_flops(c, config) for c in counts))
    assert result["padding_share"] == pytest.approx(1.0 - sum(c.rows for c in counts) / (STEPS * 512))
    assert 0.0 < result["slots_with_logits_share"] < 1.0
    with torch.device("meta"):
        assert result["parameters"] == num_parameters(OneFlow(config))
    assert result["peak_gib"] is None


def measured_peer(config: Config) -> list[dict[str, Any]]:
    link = Kept()
    measure_peer(job(kind="peer", sequences=4), config, link, CPU)
    return link.lines


def test_its_rates_count_every_token(launcher: Launcher, make_config: Callable[..., Config]) -> None:
    ((_, result),) = launcher.call(1, measured_peer, make_config(*PEER))
    assert result["rows_per_second"] == pytest.approx(64 * result["documents_per_second"])
    linear = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48) + 32 * 384  # of two layers, and the logits
    pairs = 4 * 64**2 / 2
    flops = 3 * 2 * 256 * linear + 3.5 * 4 * 32 * 2 * pairs
    assert result["tflops"] * 1e12 == pytest.approx(flops * result["rows_per_second"] / 256)
    assert result["tflops_by_its_own_formula"] > result["tflops"]  # it counts all of the causal attention
    assert result["parameters"] > 2 * 384 * 32


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("device", {"ready", "rate"}),
        ("numbers of draws", {"check"}),
        ("launches of logits", {"ready"}),  # a CPU has no launches
        ("attention, real pack, forward and backward, as tuned", {"ready", "contender", "kernels"}),
    ],
)
def test_a_job_tells_what_its_kind_tells(
    name: str, kinds: set[str], make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    (named,) = (job for part in ("first", "second") for job in jobs_of(part, 512, 128) if job.name == name)
    link = Kept()
    measure(named, make_config(*SMALL), tmp_path, link, CPU)
    assert {line["kind"] for line in link.lines} == kinds
    assert all(line["case"] == name for line in link.lines if line["kind"] == "contender")
