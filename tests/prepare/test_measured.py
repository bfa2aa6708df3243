from __future__ import annotations

from pathlib import Path

import pytest

from oneflow_dist.config import load_config
from oneflow_dist.data.capacities import suggest
from oneflow_dist.prepare.recipe import GENEROUS
from tests.conftest import without_shape_checks
from tests.prepare.prepared import run, write_pairs


def test_packs_have_the_room_that_samples_need(tmp_path: Path) -> None:
    run(write_pairs(tmp_path / "in", 40), tmp_path / "out")
    config = load_config(tmp_path / "out/config.toml")
    assert config.data.max_sample_rows < GENEROUS["data.max_sample_rows"]
    assert config.data.max_sample_rows >= 16 + 4  # patches of a picture, words and what begins a document
    assert config.sampling.max_rows > config.data.max_sample_rows  # a prompt may be longer than any caption
    assert config.data.overlong == "error"  # every sample was measured


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_longest_held_out_sample_fits_too(seed: int, tmp_path: Path) -> None:
    """Its words may be rare in what is trained on, and so of many tokens."""
    source = write_pairs(tmp_path / "in", 30)
    for number, path in enumerate(sorted(source.glob("*.txt"))):
        path.write_text("thing " * (number % 5 + 1) + f"zq{number}xk " * (number % 7))
    run(source, tmp_path / "out", seed=seed, held_out=0.3)
    config = load_config(tmp_path / "out/config.toml")
    held_out = load_config(tmp_path / "out/config.toml", [f"data.mixture='{tmp_path / 'out/heldout.yaml'}'"])
    with without_shape_checks():
        found = suggest(held_out)
    assert found.longest_rows <= config.data.max_sample_rows <= config.data.rows_per_pack
    assert found.now is not None
