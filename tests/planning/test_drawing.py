from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from oneflow_dist.planning.drawing import COLOURS, WAITING, draw_timeline
from oneflow_dist.planning.timeline import DEVICE, Bar, Timeline, Wait

LANES = Timeline(
    bars=[
        Bar("shard", "all_gather", 0.0, 0.2),
        Bar(DEVICE, "forward", 0.2, 0.6),
        Bar(DEVICE, "backward", 0.6, 0.9),
        Bar(DEVICE, "update", 0.9, 1.0),
        Bar("all", "all_reduce", 0.99999, 1.0),
    ],
    waits=[Wait("shard", 0.0, 0.2)],
    seconds=1.0,
    compute=0.8,
    busy={"shard": 0.2, "all": 0.00001},
    exposed={"shard": 0.2, "all": 0.0},
)


def test_lanes_are_named_with_what_is_exposed_and_the_end_says_the_whole() -> None:
    figure = draw_timeline(LANES, "two nodes")
    (panel,) = figure.axes
    assert [label.get_text() for label in panel.get_yticklabels()] == [
        "device\n800 ms busy",
        "shard\n200 ms, 200 exposed",  # what all ranks sum takes too little to be seen
    ]
    (end,) = (text.get_text() for text in panel.texts)
    assert end == "1,000.0 ms\n80.0% computing\n20.0% waiting"


@pytest.mark.parametrize("colour", [COLOURS["forward"], COLOURS["backward"], COLOURS["all_gather"], WAITING])
def test_what_computes_sends_and_waits_can_be_seen(colour: str, tmp_path: Path) -> None:
    draw_timeline(LANES, "x").savefig(tmp_path / "lanes.png")
    picture = (255 * imread(tmp_path / "lanes.png")[..., :3]).round().astype(int)
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    assert np.all(picture == wanted, axis=-1).sum() > 300
