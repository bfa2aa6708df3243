from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from oneflow_dist.config import Config, ImageConfig
from oneflow_dist.model.images import ImageAdapter, patchify, unpatchify

SHAPES = {
    "one patch": ImageConfig(channels=3, height=2, width=2, patch_size=2, time_conditioning="added"),
    "single elements": ImageConfig(channels=2, height=3, width=4, patch_size=1, time_conditioning="added"),
    "wide": ImageConfig(channels=16, height=4, width=12, patch_size=2, time_conditioning="added"),
    "high": ImageConfig(channels=1, height=9, width=3, patch_size=3, time_conditioning="added"),
}
every_shape = pytest.mark.parametrize("image", SHAPES.values(), ids=SHAPES)


@every_shape
@pytest.mark.parametrize("num_images", [0, 1, 3])
def test_unpatchify_inverts_patchify(image: ImageConfig, num_images: int) -> None:
    latents = torch.randn(num_images, *image.shape)
    patches = patchify(latents, image)
    assert patches.shape == (num_images, image.num_rows, image.channels * image.patch_size**2)
    assert torch.equal(unpatchify(patches, image), latents)


def test_patches_go_row_by_row_and_list_elements_by_row_column_and_channel() -> None:
    image = ImageConfig(channels=2, height=4, width=6, patch_size=2, time_conditioning="added")
    channel, row, column = torch.meshgrid(torch.arange(2), torch.arange(4), torch.arange(6), indexing="ij")
    patches = patchify((100 * channel + 10 * row + column).float()[None], image)[0]
    assert patches[0].tolist() == [0, 100, 1, 101, 10, 110, 11, 111]
    assert patches[:, 0].tolist() == [0, 2, 4, 20, 22, 24]  # first row and column of each patch


@pytest.fixture
def time_embedding() -> torch.Tensor:
    return torch.randn(2, 12, generator=torch.Generator().manual_seed(0))


def test_added_time_moves_every_row_of_its_image(config: Config, time_embedding: torch.Tensor) -> None:
    adapter = ImageAdapter(12, config.image, 1e-5)
    latents = torch.randn(2, *config.image.shape)
    with_time = adapter.encode(latents, time_embedding)
    without = adapter.encode(latents, torch.zeros(2, 12))
    torch.testing.assert_close(with_time - without, time_embedding[:, None].expand(2, 4, 12))


def test_modulation_replaces_the_added_time(config: Config, time_embedding: torch.Tensor) -> None:
    torch.manual_seed(0)
    adapter = ImageAdapter(12, replace(config.image, time_conditioning="adaln"), 1e-5)
    latents, rows = torch.randn(2, *config.image.shape), torch.randn(2, 4, 12)
    other = time_embedding.flip(0)
    assert torch.equal(adapter.encode(latents, time_embedding), adapter.encode(latents, other))
    assert not torch.isclose(adapter.decode(rows, time_embedding), adapter.decode(rows, other)).all()


def test_without_modulation_decoding_knows_no_time(config: Config, time_embedding: torch.Tensor) -> None:
    adapter = ImageAdapter(12, config.image, 1e-5)
    rows = torch.randn(2, 4, 12)
    assert torch.equal(adapter.decode(rows, time_embedding), adapter.decode(rows, time_embedding.flip(0)))


def test_each_patch_of_the_velocity_comes_from_its_own_row(config: Config, time_embedding: torch.Tensor) -> None:
    torch.manual_seed(0)
    adapter = ImageAdapter(12, config.image, 1e-5)
    rows = torch.randn(2, 4, 12)
    changed = rows.clone()
    changed[1, 2] += torch.randn(12)
    difference = adapter.decode(changed, time_embedding) - adapter.decode(rows, time_embedding)
    is_changed = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    is_changed[1, :, 4:, :4] = True  # patch (1, 0) of image 1
    assert torch.equal(difference != 0.0, is_changed)


def test_adapter_without_images_gives_none(config: Config) -> None:
    adapter = ImageAdapter(12, config.image, 1e-5)
    nothing = adapter.encode(torch.zeros(0, *config.image.shape), torch.zeros(0, 12))
    assert adapter.decode(nothing, torch.zeros(0, 12)).shape == (0, *config.image.shape)
