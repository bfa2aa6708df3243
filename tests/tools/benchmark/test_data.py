"""A data worker, stage by stage, beside webdataset."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from oneflow_dist.config import Config
from oneflow_dist.data.loader import PackLoader
from tools.benchmark.data import (
    MEMORY,
    RATE,
    STAGES,
    count_webdataset,
    measure,
    open_lane,
    shards_with,
    time_stages,
    watch,
    with_made_up_shards,
)

CPU = torch.device("cpu")
# webdataset leaves closing its shards to the garbage collector.
LEFT_OPEN = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
SMALL = ("data.rows_per_pack=512", "data.tokens_per_pack=512", "modality.image.per_pack=60")


@LEFT_OPEN
def test_each_round_has_a_rate_of_both_sides_and_of_every_stage(make_config: Callable[..., Config]) -> None:
    """On the config's own mixture: digits as pictures."""
    measured = measure(make_config(*SMALL), 64, 2, CPU)
    assert {name: len(values) for name, values in measured.series[RATE].items()} == {"ours": 2, "webdataset": 2}
    assert all(len(values) == 2 and min(values) > 0.0 for values in measured.series[STAGES].values())
    assert min(measured.series[MEMORY]["after a round"]) > 0.0
    assert 0.0 <= measured.numbers["padding share"] < 0.2  # type: ignore[operator]


@LEFT_OPEN
def test_made_up_latents_of_the_configs_shape_fill_its_packs(
    make_config: Callable[..., Config], tmp_path: Path
) -> None:
    shape = "modality.image.channels=4", "modality.image.shape=[8, 16]"
    longer = "data.max_sample_rows=512", "data.bag_tokens_per_pack=512"
    config = with_made_up_shards(make_config(*SMALL, *shape, *longer), tmp_path, 64)
    measured = measure(config, 64, 1, CPU)
    assert measured.numbers["padding share"] < 0.1  # type: ignore[operator]


@LEFT_OPEN
def test_webdataset_reads_as_few_shards_as_hold_the_samples(make_config: Callable[..., Config]) -> None:
    lane = open_lane(make_config(*SMALL))
    single, count = (stream.shards for stream in lane.streams)
    assert shards_with(lane, 1) == single.paths[:1]
    assert shards_with(lane, len(single.indexes[0]) + 1) == [single.paths[0], count.paths[0]]
    assert sorted(shards_with(lane, 10**6)) == sorted([*single.paths, *count.paths])
    assert count_webdataset(single.paths[:1]) == len(single.indexes[0])


def test_a_watched_lane_makes_the_packs_of_the_loader(make_config: Callable[..., Config]) -> None:
    config = make_config(*SMALL)
    lane = open_lane(config)
    clock = watch(lane)
    counts, _ = time_stages(lane, clock, 1, CPU)
    loader = PackLoader(config, 0, 1)
    assert counts == loader.next_step()[0].counts
    (again,) = loader.next_step()
    assert lane.next_pack().keys == again.keys


@pytest.mark.parametrize(
    ("slow", "stage", "seconds"),
    [
        ("oneflow_dist.data.shards.read_at", "read", 0.01),
        ("oneflow_dist.data.streams.decode_record", "decode and tokenize", 0.02),
        ("oneflow_dist.flow.process.noise_sample", "make and noise", 0.02),
        ("oneflow_dist.data.lanes.pack", "pack", 1.0),  # for all samples of a pack together
    ],
)
def test_time_is_that_of_the_stage_in_which_it_passes(
    slow: str, stage: str, seconds: float, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = open_lane(make_config(*SMALL, "data.cached_samples=0"))
    clock = watch(lane)
    lane.next_pack()
    module, _, name = slow.rpartition(".")
    function = getattr(__import__(module, fromlist=[name]), name)

    def sleeping(*args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds)
        return function(*args, **kwargs)

    monkeypatch.setattr(slow, sleeping)
    counts, stages = time_stages(lane, clock, 1, CPU)
    assert stages[stage] == max(stages.values()) >= (seconds / counts.sequences if stage == "pack" else seconds)
