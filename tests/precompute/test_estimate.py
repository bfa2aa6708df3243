from __future__ import annotations

from pathlib import Path

import pytest

from oneflow_dist.precompute.estimate import estimate
from tests.messages import naming
from tests.precompute.making import make_tools, run, write_shards, write_tar


def test_an_estimate_counts_all_and_foretells_the_size(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "raw", num_shards=3, samples=40)
    cost = estimate(make_tools(batch_size=8), shards)
    assert (cost.shards, cost.samples, cost.images) == (3, 126, 126)
    assert cost.num_bytes == sum(shard.stat().st_size for shard in shards)
    assert cost.images_per_second > 0
    assert cost.hours(4) == pytest.approx(cost.hours(1) / 4)
    run(shards, tmp_path / "out", batch_size=8)
    size = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.tar"))
    assert cost.output_bytes == pytest.approx(size, rel=0.25)


def test_text_alone_takes_no_time(tmp_path: Path) -> None:
    cost = estimate(make_tools(), [write_tar(tmp_path / "a.tar", [("0.txt", b"x"), ("1.txt", b"y")])])
    assert (cost.samples, cost.images, cost.hours(1)) == (2, 0, 0.0)
    assert cost.output_bytes > 0


def test_pictures_that_cannot_be_read_have_no_rate(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", [("0.txt", b"x"), ("0.png", b"bad")])
    with pytest.raises(ValueError, match=naming(shard)):
        estimate(make_tools(), [shard])
