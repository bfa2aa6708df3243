from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from oneflow_dist.config import Config, load_config
from oneflow_dist.planning.cluster import Cluster
from oneflow_dist.planning.estimate import estimate
from oneflow_dist.planning.events import GATHER, REDUCE, UPDATE, Call, Collective, Send, Stretch, Work
from oneflow_dist.planning.gpus import GIB, GPUS
from oneflow_dist.planning.report import by_axis, plan_json, plan_text
from oneflow_dist.planning.trace import Trace

H100 = Cluster(gpu=GPUS["h100-80gb"])
WEIGHTS = (GIB, GIB, GIB, 2 * GIB)


def of_fsdp(size: int) -> Send:
    return Send(Collective(GATHER, "shard", size), is_fsdp=True)


TRACE = Trace(
    mesh=(1, 16, 1, 2),
    rows_per_pack=16384,
    num_parameters=8_030_261_248,
    checkpoint_bytes=16 * (8_030_261_248),
    held={"parameters": GIB, "optimizer": 2 * GIB, "average": GIB},
    peaks={
        "update": {"parameters": GIB, "optimizer": 2 * GIB, "average": GIB, "activations": 30 * GIB, "temporary": GIB}
    },
    stretches=(
        Stretch("microbatch", 1, (Work(False, ((Call("blocks", "mm", 1, 10**15), 1),)), *map(of_fsdp, WEIGHTS))),
        Stretch(UPDATE, 1, (Send(Collective(REDUCE, "all", 24), is_fsdp=False),)),
    ),
)


@pytest.fixture(scope="module")
def config(root: Path) -> Config:
    return load_config(root / "configs" / "oneflow_8b.toml")


def test_a_page_says_what_is_planned_and_whether_it_fits(config: Config) -> None:
    found = estimate(TRACE, config, H100)
    page = plan_text(TRACE, found, config, H100)
    assert page.startswith("32 x h100-80gb: replicate 1 x shard 16 x context 1 x tensor 2\n8,030,261,248 parameters, ")
    assert "  activations      30.00\n" in page
    assert "  sum              35.00 of 70.51: fits\n" in page
    assert "  shard (16 ranks, over 200 GB/s of network) all_gather" in page
    for axis, exposed in found.exposed_seconds.items():
        assert f"exposed {exposed:8.4f} s of {found.busy_seconds[axis]:.4f} on the links of {axis}" in page
    assert f"  step    {found.step_seconds:8.4f} s, the sum" in page
    assert max(map(len, page.splitlines())) <= 140


def test_a_page_says_what_a_whole_run_takes(config: Config) -> None:
    found = dataclasses.replace(estimate(TRACE, config, H100), step_seconds=86.4)
    page = plan_text(TRACE, found, config, H100)
    assert f"{config.train.steps / 1000:.2f} days" in page
    assert f"a checkpoint takes {16 * TRACE.num_parameters / GIB:.2f} GiB" in page
    table = plan_json(TRACE, found, config, H100)
    assert table["run_seconds"] == config.train.steps * 86.4
    assert table["checkpoint_bytes"] == 16 * TRACE.num_parameters


def test_a_page_says_it_loudly_when_it_does_not_fit(config: Config) -> None:
    small = Cluster(gpu=GPUS["h100-80gb"], reserved_bytes=60 * GIB)
    assert "35.00 of 14.51: DOES NOT FIT" in plan_text(TRACE, estimate(TRACE, config, small), config, small)


def test_collectives_are_added_up_by_axis_and_kind() -> None:
    rows = by_axis(TRACE, H100)
    assert list(rows) == [("all", REDUCE), ("shard", GATHER)]
    assert (rows["shard", GATHER]["count"], rows["shard", GATHER]["bytes"]) == (4, 5 * GIB)


def test_the_numbers_survive_json(config: Config) -> None:
    found = estimate(TRACE, config, H100)
    table = json.loads(json.dumps(plan_json(TRACE, found, config, H100)))
    assert table["mesh"] == {"replicate": 1, "shard": 16, "context": 1, "tensor": 2}
    assert table["peak_bytes"] == TRACE.peak
    assert {"kind": GATHER, "axis": "shard", "bytes": GIB, "count": 3} in table["collectives"]
    assert table["estimate"]["step_seconds"] == found.step_seconds
    assert table["estimate"]["exposed_seconds"] == found.exposed_seconds
    assert table["estimate"]["fits"] is True
    assert table["cluster"]["gpu"]["name"] == "h100-80gb"
