from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from oneflow_dist.commands.autoencoder_training import lr_factor, make_model, open_images
from tests.messages import Message
from tests.tools.gradients import png, write_shard, write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_shards(tmp_path_factory.mktemp("shards"))


def test_every_image_is_trained_on_or_measured_on_but_not_both(shards: str) -> None:
    images, val_images = open_images([shards], [], seed=3)
    train_places, val_places = ({(n, name) for _, n, name in part.members} for part in (images, val_images))
    assert (len(train_places), len(val_places)) == (18, 2)
    assert not train_places & val_places
    images, val_images = open_images([shards], [shards], seed=3)
    assert len(images) == len(val_images) == 20


def test_crops_are_of_the_resized_short_side(tmp_path: Path) -> None:
    left, right = np.zeros((2, 20, 20, 3), dtype=np.uint8)
    right += 255
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate([left, right], axis=1)).save(buffer, format="PNG")
    images, _ = open_images([write_shard(tmp_path / "a.tar", [{"png": buffer.getvalue()}] * 2)], [], seed=0)
    centre = images.read(0, 8)
    assert centre.shape == (3, 8, 8)
    assert centre[:, :, 0].max() < -0.9
    assert centre[:, :, -1].min() > 0.9
    rng = np.random.default_rng(0)
    assert len({images.read(0, 8, rng).mean().round(3) for _ in range(50)}) > 5


def test_the_learning_rate_warms_up_and_ends_near_zero() -> None:
    factors = [lr_factor(step, 100) for step in range(100)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5:] == sorted(factors[5:], reverse=True)
    assert 0.0 < factors[-1] < 0.01


def test_the_architecture_is_that_of_sd3() -> None:
    model = make_model(channels=16, widths=[16, 16, 32, 64], layers=1, size=64, seed=0)
    assert model.quant_conv is model.post_quant_conv is None
    assert len(model.encoder.mid_block.attentions) == 1
    assert model.config.norm_num_groups == 4
    assert model.encode(torch.zeros(1, 3, 64, 64)).latent_dist.mean.shape == (1, 16, 8, 8)


def test_shards_without_images_are_refused(tmp_path: Path) -> None:
    texts = write_shard(tmp_path / "a.tar", [{"txt": b"no picture"}])
    with pytest.raises(ValueError) as error:
        open_images([texts], [], seed=0)
    assert Message(error.value) == f"{texts}: no images; samples need a member that ends on one of png, jpg, jpeg, webp"
    one = write_shard(tmp_path / "b.tar", [{"png": png(8, 8, np.random.default_rng(0))}])
    with pytest.raises(ValueError) as error:
        open_images([one], [], seed=0)
    assert Message(error.value) == f"{one}: 1 image, and none to measure on; add images, or --val with shards"
