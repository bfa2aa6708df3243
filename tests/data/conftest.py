"""The lanes that several tests take samples from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from oneflow_dist.config import Config
from oneflow_dist.data.lanes import Lane
from oneflow_dist.data.mixture import load_mixture
from oneflow_dist.data.shards import open_shards
from oneflow_dist.data.tokenizer import load_tokenizer
from tests.data.making import NUM_LANES, MakeLane


@pytest.fixture(scope="session")
def make_lane(make_config: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> MakeLane:
    """A lane over sources given as a table of YAML, for small packs."""

    def make(sources: str, index: int = 0, *overrides: str) -> Lane:
        mixture = tmp_path_factory.mktemp("mixture") / "mixture.yaml"
        mixture.write_text(f"sources: {sources}\n")
        small = ["rows_per_pack=96", "tokens_per_pack=72", "bag_tokens_per_pack=64"]
        small += ["sequences_per_pack=32", "max_sample_rows=64", "window_samples=32", f"packs_per_step={NUM_LANES}"]
        small_packs = ["modality.image.per_pack=24", *(f"data.{key}" for key in small)]
        config = make_config(f"data.mixture={mixture}", *small_packs, *overrides)
        read = load_mixture(config.data.mixture)
        shards = [open_shards(source.name, source.shards) for source in read]
        return Lane(index, config, read, shards, load_tokenizer(config.data.tokenizer, config.modality))

    return make


@pytest.fixture(scope="session")
def counting(digits: Path) -> str:
    return f"{{count: {{shards: '{digits}/count-heldout-*.tar', weight: 1, tasks: {{interleaved: 1}}}}}}"
