from __future__ import annotations

from pathlib import Path

from oneflow_dist.config import load_config
from oneflow_dist.prepare.recipe import GENEROUS
from tests.prepare.prepared import run, write_pairs


def test_packs_have_the_room_that_samples_need(tmp_path: Path) -> None:
    run(write_pairs(tmp_path / "in", 40), tmp_path / "out")
    config = load_config(tmp_path / "out/config.toml")
    assert config.data.max_sample_rows < GENEROUS["data.max_sample_rows"]
    assert config.data.max_sample_rows >= 16 + 4  # patches of a picture, words and what begins a document
    assert config.sampling.max_rows == config.data.max_sample_rows
    assert config.data.overlong == "error"  # every sample was measured
