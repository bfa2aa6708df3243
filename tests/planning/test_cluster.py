from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from oneflow_dist.config import Config, load_config
from oneflow_dist.planning.cluster import Cluster, estimate, group_span, link_seconds, model_flops
from oneflow_dist.planning.gpus import GIB, GPUS
from oneflow_dist.planning.recorder import GATHER, REDUCE, SCATTER, Collective
from oneflow_dist.planning.trace import Trace

H100 = Cluster(gpu=GPUS["h100-80gb"])
TRACE = Trace(
    mesh=(2, 8, 4),
    microbatches=3,
    num_parameters=10**9,
    checkpoint_bytes=16 * (10**9),
    held={"parameters": GIB},
    peak={"parameters": GIB, "activations": 9 * GIB},
    collectives={
        Collective(GATHER, "shard", 8 * 10**9): 2,
        Collective(SCATTER, "tensor", 4 * 10**9): 3,
        Collective(REDUCE, "replicate", 10**9): 1,
    },
    flops=10**15,
)


@pytest.fixture(scope="module")
def config(root: Path) -> Config:
    return load_config(root / "configs" / "oneflow_8b.toml")


def test_groups_stretch_over_what_lies_between_their_ranks() -> None:
    spans = {group: group_span(group, (2, 8, 4)) for group in ("tensor", "shard", "shard_tensor", "replicate", "all")}
    assert spans == {
        "tensor": (4, 4),
        "shard": (8, 32),
        "shard_tensor": (32, 32),
        "replicate": (2, 64),
        "all": (64, 64),
    }


@pytest.mark.parametrize(
    ("collective", "seconds"),
    [
        # bytes (n - 1) / n / (0.8 x rate) + 20 microseconds
        (Collective(GATHER, "shard", 8 * 10**9), 8e9 * 7 / 8 / (0.8 * 50e9) + 2e-5),  # 32 ranks: over the network
        (Collective(SCATTER, "tensor", 4 * 10**9), 4e9 * 3 / 4 / (0.8 * 450e9) + 2e-5),  # 4 ranks: in a node
        (Collective(REDUCE, "replicate", 10**9), 2 * 1e9 / 2 / (0.8 * 50e9) + 2e-5),  # there and back
    ],
)
def test_a_collective_takes_its_bytes_over_the_slowest_link(collective: Collective, seconds: float) -> None:
    assert link_seconds(collective, TRACE, H100) == pytest.approx(seconds)


def test_a_group_of_one_sends_nothing() -> None:
    alone = dataclasses.replace(TRACE, mesh=(1, 1, 1))
    assert link_seconds(Collective(REDUCE, "all", 10**9), alone, H100) == H100.latency_seconds


def test_a_step_takes_the_longer_of_computing_and_data_links_and_all_of_the_tensor_links(config: Config) -> None:
    found = estimate(TRACE, config, H100)
    assert found.compute_seconds == pytest.approx(1e15 / (989e12 * 0.65))
    assert found.data_seconds == pytest.approx(2 * (7e9 / 40e9 + 2e-5) + 1e9 / 40e9 + 2e-5)
    assert found.tensor_seconds == pytest.approx(3 * (3e9 / 360e9 + 2e-5))
    assert found.step_seconds == max(found.compute_seconds, found.data_seconds) + found.tensor_seconds
    assert found.mfu == pytest.approx(model_flops(TRACE, config) / (found.step_seconds * 989e12))
    assert found.rows_per_second == pytest.approx(3 * 16384 / 4 / found.step_seconds)

    slow_links = dataclasses.replace(H100, link_efficiency=0.08)
    slow = estimate(TRACE, config, slow_links)
    assert slow.data_seconds > slow.compute_seconds
    assert slow.step_seconds == slow.data_seconds + slow.tensor_seconds


def test_asynchronous_tensor_links_are_hidden(config: Config) -> None:
    parallel = dataclasses.replace(config.parallel, async_tensor=True)
    found = estimate(TRACE, dataclasses.replace(config, parallel=parallel), H100)
    assert found.step_seconds == max(found.compute_seconds, found.data_seconds)


@pytest.mark.parametrize(("peak", "fits"), [(70 * GIB, True), (71 * GIB, False)])
def test_a_step_fits_if_its_peak_leaves_room_for_cuda(config: Config, peak: int, fits: bool) -> None:
    found = estimate(dataclasses.replace(TRACE, peak={"activations": peak}), config, H100)
    assert found.room_bytes == 80e9 - 4 * GIB
    assert found.fits == fits


def test_the_model_computes_per_rank_its_share_of_the_closed_form(config: Config) -> None:
    per_row = 2 * 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336)  # of the blocks' products
    head = 2 * 4096 * 128256 * 8192
    attention = 4 * 4096 * 32 * 16384 * 512
    adapter = 2 * 2 * 64 * 4096 * 4096  # in and out, of the patches in the rows that tokens leave
    pack = 3 * (per_row * 16384 + head + adapter) + 3.5 * attention
    assert model_flops(TRACE, config) == pytest.approx(3 * pack / 4)
