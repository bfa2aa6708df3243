from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from oneflow_dist.config import Config
from oneflow_dist.model.images import ImageAdapter

PATCH_IMAGE = torch.tensor([0, 0, 0, 1, 1])  # an image of three patches, one of two


@pytest.fixture
def time_embedding() -> torch.Tensor:
    return torch.randn(2, 12, generator=torch.Generator().manual_seed(0))


def test_added_time_moves_every_row_of_its_image(config: Config, time_embedding: torch.Tensor) -> None:
    adapter = ImageAdapter(12, config.image, 1e-5)
    patches = torch.randn(5, 16)
    with_time = adapter.encode(patches, time_embedding, PATCH_IMAGE)
    without = adapter.encode(patches, torch.zeros(2, 12), PATCH_IMAGE)
    torch.testing.assert_close(with_time - without, time_embedding[PATCH_IMAGE])


def test_modulation_replaces_the_added_time(config: Config, time_embedding: torch.Tensor) -> None:
    torch.manual_seed(0)
    adapter = ImageAdapter(12, replace(config.image, time_conditioning="adaln"), 1e-5)
    patches, rows = torch.randn(5, 16), torch.randn(5, 12)
    other = time_embedding.flip(0)
    assert torch.equal(
        adapter.encode(patches, time_embedding, PATCH_IMAGE), adapter.encode(patches, other, PATCH_IMAGE)
    )
    assert not torch.isclose(
        adapter.decode(rows, time_embedding, PATCH_IMAGE), adapter.decode(rows, other, PATCH_IMAGE)
    ).all()


def test_modulation_gives_each_patch_the_time_of_its_image(config: Config, time_embedding: torch.Tensor) -> None:
    torch.manual_seed(0)
    adapter = ImageAdapter(12, replace(config.image, time_conditioning="adaln"), 1e-5)
    rows = torch.randn(5, 12)
    together = adapter.decode(rows, time_embedding, PATCH_IMAGE)
    for image in (0, 1):
        own = PATCH_IMAGE.eq(image)
        alone = adapter.decode(rows[own], time_embedding[image : image + 1], torch.zeros_like(PATCH_IMAGE[own]))
        torch.testing.assert_close(together[own], alone)


def test_without_modulation_decoding_knows_no_time(config: Config, time_embedding: torch.Tensor) -> None:
    adapter = ImageAdapter(12, config.image, 1e-5)
    rows = torch.randn(5, 12)
    other = time_embedding.flip(0)
    assert torch.equal(adapter.decode(rows, time_embedding, PATCH_IMAGE), adapter.decode(rows, other, PATCH_IMAGE))


def test_each_patch_of_the_velocity_comes_from_its_own_row(config: Config, time_embedding: torch.Tensor) -> None:
    torch.manual_seed(0)
    adapter = ImageAdapter(12, config.image, 1e-5)
    rows = torch.randn(5, 12)
    changed = rows.clone()
    changed[2] += torch.randn(12)
    before, after = (adapter.decode(x, time_embedding, PATCH_IMAGE) for x in (rows, changed))
    assert (after != before).all(dim=1).tolist() == [False, False, True, False, False]
    assert torch.equal((after != before).any(dim=1), (after != before).all(dim=1))


def test_adapter_without_images_gives_none(config: Config) -> None:
    adapter = ImageAdapter(12, config.image, 1e-5)
    nothing, no_image = torch.zeros(0, 12), torch.zeros(0, dtype=torch.int64)
    rows = adapter.encode(torch.zeros(0, 16), nothing, no_image)
    assert adapter.decode(rows, nothing, no_image).shape == (0, 16)
