"""Capacities that are measured on a mixture: what training with them leaves empty."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest

from oneflow_dist.config import Config, load_config
from oneflow_dist.containers import Counts
from oneflow_dist.data.capacities import TARGET, Suggestion, suggest
from oneflow_dist.data.loader import PackLoader
from oneflow_dist.metrics import padding
from tests.tars import write_tar

MakeConfig = Callable[..., Config]
TEXTS = [f"{number} " * (number % 30 + 1) for number in range(200)]


@pytest.fixture(autouse=True, scope="module")
def _without_shape_checks(unchecked: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    with unchecked():
        yield


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of texts of very different lengths."""
    folder = tmp_path_factory.mktemp("texts")
    write_tar(folder / "a.tar", {f"{number:03d}.txt": text.encode() for number, text in enumerate(TEXTS)})
    mixture = folder / "mixture.yaml"
    mixture.write_text(f"sources: {{texts: {{shards: '{folder}/a.tar', weight: 1, tasks: {{text_only: 1}}}}}}\n")
    return mixture


@pytest.fixture
def text_config(make_config: MakeConfig, texts: Path) -> Config:
    return make_config(f"data.mixture={texts}", "data.tokenizer=bytes", "data.workers=0", "data.window_samples=64")


def with_overrides(config: Config, found: Suggestion, tmp_path: Path) -> Config:
    """As a user does: the line that is printed behind the config."""
    from oneflow_dist.config import write_config

    path = tmp_path / "config.toml"
    path.write_text(write_config(config))
    return load_config(path, found.describe().splitlines()[-1].split())


def padding_of(config: Config, packs: int) -> float:
    loader = PackLoader(config, 0, 1)
    batches = [batch for _ in range(packs) for batch in loader.next_step()]
    return padding(sum((batch.counts for batch in batches), Counts.zeros()))


@pytest.mark.parametrize("rows", [64, 512])
def test_training_with_what_is_suggested_leaves_hardly_any_padding(
    text_config: Config, rows: int, tmp_path: Path
) -> None:
    config = replace(text_config, data=replace(text_config.data, rows_per_pack=rows, max_sample_rows=rows))
    found = suggest(config)
    taken = with_overrides(config, found, tmp_path)
    assert found.taken.padding < TARGET
    assert padding_of(taken, 20) < 1.5 * TARGET
    assert taken.data.rows_per_pack >= rows


def test_the_longest_sample_fits_whatever_the_config_says(text_config: Config) -> None:
    small = replace(text_config, data=replace(text_config.data, rows_per_pack=16, max_sample_rows=16))
    found = suggest(small)
    longest = 2 + max(len(text.strip()) for text in TEXTS)  # BOS and EOS or the like
    assert found.now is None
    assert longest - 1 <= found.longest_rows <= longest
    assert found.overrides["data.max_sample_rows"] == found.longest_rows <= found.overrides["data.rows_per_pack"]
    assert "does not fit" in found.describe()


def test_what_a_config_drops_on_purpose_stays_dropped(text_config: Config) -> None:
    data = replace(text_config.data, rows_per_pack=128, max_sample_rows=20, overlong="drop")
    found = suggest(replace(text_config, data=data))
    assert found.longest_rows <= 20
    assert "data.max_sample_rows" not in found.overrides


def test_pieces_have_room(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config("data.workers=0", "modality.image.per_pack=1", "data.rows_per_pack=512")
    found = suggest(config)
    assert found.now is None  # five images in a document
    taken = with_overrides(config, found, tmp_path)
    assert taken.modality["image"].per_pack >= 5
    assert padding_of(taken, 10) < 1.5 * TARGET


def test_packs_are_measured_as_they_are_chosen(text_config: Config) -> None:
    data = replace(text_config.data, rows_per_pack=512, max_sample_rows=512)
    oldest, equal = (
        suggest(replace(text_config, data=replace(data, packing=packing))) for packing in ("oldest", "balanced")
    )
    assert equal != oldest
    assert equal.taken.padding < TARGET


def test_the_same_data_give_the_same_capacities(text_config: Config) -> None:
    assert suggest(text_config) == suggest(text_config)


def test_a_mixture_that_leaves_all_out_is_refused(text_config: Config, tmp_path: Path, texts: Path) -> None:
    mixture = tmp_path / "mixture.yaml"
    mixture.write_text(texts.read_text().replace("weight: 1", "weight: 1, filters: {score: {min: 1}}"))
    with pytest.raises(ValueError, match="left out"):
        suggest(replace(text_config, data=replace(text_config.data, mixture=str(mixture))))
