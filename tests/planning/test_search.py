from __future__ import annotations

import dataclasses
from concurrent.futures import Executor
from pathlib import Path

import pytest

from oneflow_dist.config import Config, load_config
from oneflow_dist.planning.cluster import Cluster
from oneflow_dist.planning.events import Call, Stretch, Work
from oneflow_dist.planning.gpus import GPUS
from oneflow_dist.planning.search import CHECKPOINTING, layouts, search, trace_few_layers, with_layers
from oneflow_dist.planning.trace import Trace, fresh_processes, trace_step

H100 = Cluster(gpu=GPUS["h100-80gb"])


@pytest.fixture(scope="module")
def config(root: Path) -> Config:
    """configs/debug.toml with six layers."""
    return load_config(root / "configs" / "debug.toml", ["model.num_layers=6", "data.packs_per_step=8"])


def test_layouts_are_those_that_can_be_run(config: Config) -> None:
    found = list(layouts(config, 16, 8))
    meshes = [(c.parallel.replicate, c.parallel.shard, c.parallel.tensor) for c in found]
    assert {c.parallel.context for c in found} == {1}  # 256 rows are not for several ranks
    assert all(replicate * shard * tensor == 16 for replicate, shard, tensor in meshes)
    assert {tensor for *_, tensor in meshes} == {2}  # 8 packs: not for 16 data ranks; 2 key heads: not for 4
    assert meshes == [(1, 8, 2), (2, 4, 2)]  # copies of whole nodes of 8


def test_a_context_axis_is_tried_where_packs_are_long(config: Config) -> None:
    data = dataclasses.replace(config.data, rows_per_pack=16384, packs_per_step=16)
    found = list(layouts(dataclasses.replace(config, data=data), 16, 8))
    shared = {(c.parallel.context, c.parallel.tensor) for c in found}
    assert {context * tensor for context, tensor in shared if context > 1} == {2, 4}  # 4,096 rows of each rank
    assert {(2, 1), (4, 1), (2, 2)} <= shared


def test_few_layers_tell_of_all_of_them(config: Config) -> None:
    parallel = dataclasses.replace(config.parallel, tensor=2)
    config = dataclasses.replace(with_layers(config, 5), parallel=parallel)
    with fresh_processes(2) as pool:
        quick = trace_few_layers(config, 4, pool)
    whole = trace_step(config, 4)
    assert dataclasses.replace(quick, peaks={}) == dataclasses.replace(whole, peaks={})
    assert sum(quick.peak.values()) == pytest.approx(sum(whole.peak.values()), rel=0.02)


def made_up_trace(config: Config, world_size: int, pool: Executor) -> Trace:
    """The more tensor ranks and checkpointing, the less memory and the more time."""
    degree = CHECKPOINTING.index(config.train.activation_checkpointing)
    parallel = config.parallel
    product = Call("blocks", "mm", 1, 10**15 * parallel.tensor * (4 + degree))
    return Trace(
        mesh=(parallel.replicate, parallel.shard, 1, parallel.tensor),
        rows_per_pack=256,
        num_parameters=10**9,
        checkpoint_bytes=16 * (10**9),
        held={},
        peaks={"update": {"activations": int(100e9) // (parallel.tensor * (1 + degree))}},
        stretches=(Stretch("microbatch", 1, (Work(False, ((product, 1),)),)),),
    )


def test_a_search_puts_what_fits_first_and_the_fastest_of_that(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oneflow_dist.planning.search.trace_few_layers", made_up_trace)
    found = [(c.parallel.tensor, c.train.activation_checkpointing, plan.fits) for c, _, plan in search(config, 4, H100)]
    # 100 GB do not fit, half of them do: by checkpointing, or by two tensor ranks, which take longer.
    assert found == [(1, "selective", True), (2, "none", True), (1, "none", False)]
