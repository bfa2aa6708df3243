from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from oneflow_dist.data.latents import decode_array
from oneflow_dist.model.understanding import load_understanding
from oneflow_dist.precompute.encoder import WINDOW_BATCHES, Batcher
from oneflow_dist.precompute.prepare import Picture, PreparedSample
from oneflow_dist.precompute.shard_work import encode_sample
from tests.messages import naming
from tests.precompute.making import make_tools, picture, read_tar, run, save_autoencoder, save_siglip, write_shards


def crop(seed: int, height: int = 16, width: int = 16) -> Picture:
    return Picture(name="", pixels=np.asarray(picture(seed, height, width)), view=None)


def add_all(batcher: Batcher, pictures: list[Picture]) -> list[list[Picture]]:
    return [batch for one in pictures for batch in batcher.add(one)]


def test_pixels_are_their_own_posteriors() -> None:
    one, other = crop(0), crop(1)
    encoder = make_tools().encoder()
    encoder.encode([one, other])
    mean, std = other.posteriors["npy"]
    assert np.array_equal(mean, other.pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(127.5) - np.float32(1))
    assert not std.any()
    assert set(one.posteriors) == {"npy"}
    assert encoder.num_images == 2
    assert encoder.seconds > 0


def test_the_mirrored_posterior_is_that_of_the_flipped_picture(tmp_path: Path) -> None:
    folder = save_autoencoder(tmp_path / "vae")
    tools = make_tools(autoencoder=str(folder), mirror=True)
    one = crop(0)
    flipped = Picture(name="", pixels=np.ascontiguousarray(one.pixels[:, ::-1]), view=None)
    tools.encoder().encode([one])
    make_tools(autoencoder=str(folder)).encoder().encode([flipped])
    for mirrored, expected in zip(one.posteriors["mirrored.npy"], flipped.posteriors["npy"], strict=True):
        assert np.array_equal(mirrored, expected)
    assert not np.allclose(
        one.posteriors["mirrored.npy"][0], one.posteriors["npy"][0][..., ::-1]
    )  # hence two encodings


def test_a_batch_holds_consecutive_pictures_of_one_size() -> None:
    tall, wide = [crop(n, 20, 12) for n in range(5)], [crop(n, 12, 20) for n in range(3)]
    batcher = Batcher(2)
    full = add_all(batcher, [tall[0], wide[0], wide[1], tall[1], tall[2], tall[3], wide[2], tall[4]])
    assert [[id(p) for p in batch] for batch in full] == [
        [id(p) for p in batch] for batch in (wide[:2], tall[:2], tall[2:4])
    ]
    assert [len(batch) for batch in batcher.flush()] == [1, 1]
    assert not batcher.waiting


def test_a_rare_size_waits_for_one_window_only() -> None:
    batcher = Batcher(2)
    rare, usual = crop(0, 20, 12), crop(1)
    batches = add_all(batcher, [rare, *[usual] * (2 * WINDOW_BATCHES - 1)])
    assert [rare] in [batch[:1] for batch in batches]
    assert not batcher.waiting


def test_what_came_before_a_flush_does_not_change_the_batches_after_it() -> None:
    fresh, used = Batcher(2), Batcher(2)
    add_all(used, [crop(0)] * 7)
    list(used.flush())
    pictures = [crop(n, *shape) for n, shape in enumerate([(16, 16), (20, 12)] * (2 * WINDOW_BATCHES))]
    one, other = ([len(batch) for batch in add_all(batcher, pictures)] for batcher in (fresh, used))
    assert one == other


def test_a_posterior_is_a_function_of_its_batch(tmp_path: Path) -> None:
    tools = make_tools(autoencoder=str(save_autoencoder(tmp_path / "vae")))
    one, same = crop(0), crop(0)
    tools.encoder().encode([one, crop(1)])
    tools.encoder().encode([same, crop(1)])
    assert np.array_equal(one.posteriors["npy"][0], same.posteriors["npy"][0])
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_networks_compute_in_the_dtype_that_is_asked_for(dtype: str, tmp_path: Path) -> None:
    tools = make_tools(autoencoder=str(save_autoencoder(tmp_path / "vae")), compute_dtype=dtype)
    one = crop(0)
    tools.encoder().encode([one])
    mean = one.posteriors["npy"][0]
    is_rounded = np.array_equal(mean, torch.from_numpy(mean).bfloat16().float().numpy())
    assert is_rounded == (dtype == "bfloat16")


@pytest.fixture(params=["siglip", "efficientnet-lite0"])
def features(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """What stands behind --features."""
    return str(save_siglip(tmp_path / "tiny")) if request.param == "siglip" else str(request.param)


def test_features_lie_beside_the_latents_as_maps(features: str, tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "raw", num_shards=1, samples=2)
    run(shards, tmp_path / "out", features=features)
    files = read_tar(tmp_path / "out" / shards[0].name)
    encoder = load_understanding(features, "cpu", torch.float32)
    for name in ("000.features.npy", "001.features.npy", "doc0.0.features.npy", "doc0.1.features.npy"):
        stored = decode_array(files[name], name)
        assert (stored.shape, stored.dtype) == ((encoder.channels, *encoder.grid), np.float16)
    view = np.stack([np.asarray(encoder.view.resize(picture(1, 20, 12)))])
    expected = encoder.encode(torch.from_numpy(view))[0]
    np.testing.assert_allclose(decode_array(files["001.features.npy"], ""), expected.numpy(), atol=5e-3)


def test_the_header_says_whose_features_and_of_which_shape(features: str, tmp_path: Path) -> None:
    tools = make_tools(features=features)
    header = json.loads(json.dumps(tools.header()))
    assert tools.understanding is not None
    assert header["features"] == tools.understanding.describe()
    package = "transformers" if features.endswith("tiny") else "efficientnet-lite-pytorch"
    assert set(header["versions"]) == {"oneflow_dist", "torch", "diffusers", package}
    assert header["versions"][package] is not None


def test_features_that_float16_cannot_hold_leave_the_sample_out(tmp_path: Path) -> None:
    tools = make_tools(features=str(save_siglip(tmp_path / "tiny")))
    one = Picture(name="", pixels=np.asarray(picture(0)), view=np.asarray(picture(0)))
    assert tools.understanding is not None
    huge = replace(tools.understanding, _network=lambda images: torch.full((len(images), 16, 2, 2), 1e6))
    encoder = replace(tools, understanding=huge).encoder()
    encoder.encode([one])
    with pytest.raises(ValueError, match=naming("features.npy", 64, "float16")):
        encode_sample(PreparedSample(key="000", members=[one]), "float16")
