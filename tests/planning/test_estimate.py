from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from oneflow_dist.config import Config, load_config
from oneflow_dist.planning.cluster import Cluster, link_seconds
from oneflow_dist.planning.estimate import estimate, model_flops, timeline_of
from oneflow_dist.planning.events import GATHER, REDUCE, UPDATE, Await, Call, Collective, Send, Stretch, Work
from oneflow_dist.planning.gpus import GIB, GPUS
from oneflow_dist.planning.rates import Rates
from oneflow_dist.planning.trace import Trace

H100 = Cluster(gpu=GPUS["h100-80gb"])
RATES = Rates.of(H100.gpu)
WEIGHTS, NORM = Collective(GATHER, "shard", 8 * 10**9), Collective(REDUCE, "all", 4)
PRODUCT, STEP = Call("blocks", "mm", 1, 10**14), Call("AdamW", "adam", 10**9, 0)
TRACE = Trace(
    mesh=(2, 8, 1, 4),
    rows_per_pack=16384,
    num_parameters=10**9,
    checkpoint_bytes=16 * (10**9),
    held={"parameters": GIB},
    peaks={"update": {"parameters": GIB, "activations": 9 * GIB}},
    stretches=(
        Stretch("microbatch", 3, (Send(WEIGHTS, is_fsdp=True), Await("gather"), Work(False, ((PRODUCT, 2),)))),
        Stretch(UPDATE, 1, (Work(False, ((STEP, 1),)), Send(NORM, is_fsdp=False))),
    ),
)


@pytest.fixture(scope="module")
def config(root: Path) -> Config:
    return load_config(root / "configs" / "oneflow_8b.toml")


def test_a_step_is_its_stretches_so_often_as_they_come_and_what_lies_between_kernels(config: Config) -> None:
    found = estimate(TRACE, config, H100)
    weights, norm = (link_seconds(each, TRACE.mesh, H100) for each in (WEIGHTS, NORM))
    compute = 3 * 2e14 / RATES.products + 1e9 / RATES.memory
    assert found.compute_seconds == pytest.approx(compute)
    assert found.busy_seconds == {"shard": pytest.approx(3 * weights), "all": pytest.approx(norm)}
    assert found.exposed_seconds == pytest.approx(found.busy_seconds)
    assert found.paced_seconds == pytest.approx(RATES.paced * compute)
    assert found.step_seconds == pytest.approx(compute * (1 + RATES.paced) + 3 * weights + norm)
    assert found.mfu == pytest.approx(model_flops(TRACE, config) / (found.step_seconds * 989e12))
    assert found.rows_per_second == pytest.approx(3 * 16384 / 4 / found.step_seconds)


def test_kernels_faster_than_those_measured_shorten_attention_alone(config: Config) -> None:
    attention = Work(False, ((Call("blocks", "flash_attention", 1, 10**14), 1),))
    trace = dataclasses.replace(TRACE, stretches=(*TRACE.stretches, Stretch("attention", 1, (attention,))))
    usual = estimate(trace, config, H100)
    twice = dataclasses.replace(H100, attention_flops_per_second=2.0 * RATES.attention)
    found = estimate(trace, config, twice)
    alone = usual.compute_seconds - estimate(TRACE, config, H100).compute_seconds
    assert usual.compute_seconds - found.compute_seconds == pytest.approx(alone / 2.0)
    assert found.busy_seconds == usual.busy_seconds


def test_packs_that_count_nothing_are_no_rows_and_no_model_flops(root: Path, config: Config) -> None:
    even = estimate(TRACE, config, H100)
    uneven = load_config(root / "configs" / "oneflow_8b.toml", ["data.packs_per_step=40"])  # 48 on 16 data ranks
    found = estimate(TRACE, uneven, H100)
    assert found.step_seconds == even.step_seconds
    assert found.mfu == pytest.approx(40 / 48 * even.mfu)
    assert found.rows_per_second == pytest.approx(40 / 48 * even.rows_per_second)


def test_a_timeline_shows_each_stretch_once(config: Config) -> None:
    lanes = timeline_of(TRACE.stretches, TRACE, config, H100)
    assert [bar.what for bar in lanes.bars] == [GATHER, "forward", UPDATE, REDUCE]


@pytest.mark.parametrize(("peak", "fits"), [(70 * GIB, True), (71 * GIB, False)])
def test_a_step_fits_if_its_peak_leaves_room_for_cuda(config: Config, peak: int, fits: bool) -> None:
    found = estimate(dataclasses.replace(TRACE, peaks={"update": {"activations": peak}}), config, H100)
    assert found.room_bytes == 80e9 - 4 * GIB
    assert found.fits == fits


def test_the_model_computes_per_rank_its_share_of_the_closed_form(config: Config) -> None:
    per_row = 2 * 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336)  # of the blocks' products
    head = 2 * 4096 * 128256 * 8192
    attention = 4 * 4096 * 32 * 16384 * 512
    adapter = 2 * 2 * 64 * 4096 * 4096  # in and out, of the patches in the rows that tokens leave
    pack = 3 * (per_row * 16384 + head + adapter) + 3.5 * attention
    assert model_flops(TRACE, config) == pytest.approx(3 * pack / 4)
