from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from oneflow_dist.config import Config, load_config
from oneflow_dist.planning.cluster import GPUS, Cluster
from oneflow_dist.planning.search import layouts, plan_few_layers, search, with_layers
from oneflow_dist.planning.trace import trace_step

H100 = Cluster(gpu=GPUS["h100-80gb"])


@pytest.fixture(scope="module")
def config(root: Path) -> Config:
    """configs/debug.toml with six layers."""
    return load_config(root / "configs" / "debug.toml", ["model.num_layers=6", "data.packs_per_step=8"])


def test_layouts_are_those_that_can_be_run(config: Config) -> None:
    found = list(layouts(config, 16, 8))
    meshes = [(c.parallel.replicate, c.parallel.shard, c.parallel.tensor) for c in found]
    assert all(replicate * shard * tensor == 16 for replicate, shard, tensor in meshes)
    assert {tensor for *_, tensor in meshes} == {2}  # 8 packs: not for 16 data ranks; 2 key heads: not for 4
    assert meshes == [(1, 8, 2), (2, 4, 2)]  # copies of whole nodes of 8


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_few_layers_tell_of_all_of_them(config: Config, checkpointing: str) -> None:
    train = dataclasses.replace(config.train, activation_checkpointing=checkpointing)
    config = dataclasses.replace(config, train=train, parallel=dataclasses.replace(config.parallel, tensor=2))
    quick, _ = plan_few_layers(config, 4, H100)
    whole = trace_step(config, 4)
    assert dataclasses.replace(quick, peak={}) == dataclasses.replace(whole, peak={})
    assert sum(quick.peak.values()) == pytest.approx(sum(whole.peak.values()), rel=0.02)


def test_a_search_puts_what_fits_first_and_the_fastest_of_that(config: Config) -> None:
    plans = search(with_layers(config, 4), 4, H100)
    assert len(plans) == 2  # shard 4, and shard 2 x tensor 2; no copies within a node
    assert {c.train.activation_checkpointing for c, *_ in plans} == {"none"}
    assert all(found.fits for *_, found in plans)
    seconds = [found.step_seconds for *_, found in plans]
    assert seconds == sorted(seconds)

    peaks = sorted(found.peak_bytes for *_, found in plans)
    room = Cluster(gpu=dataclasses.replace(H100.gpu, memory_bytes=(peaks[0] + peaks[-1]) / 2), reserved_bytes=0.0)
    tight = search(with_layers(config, 4), 4, room)
    fits = [found.fits for *_, found in tight]
    assert fits == sorted(fits, reverse=True)
    assert any(fits)
    assert not all(fits)
    assert any(c.train.activation_checkpointing != "none" for c, *_ in tight)
