from __future__ import annotations

import json
import math
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from oneflow_dist.model.autoencoder import CONFIG, WEIGHTS, Autoencoder, load_autoencoder, psnr_db
from tests.messages import names, naming

LEVELS = 4
SD3 = {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
SD3 |= {"scaling_factor": 1.5305, "shift_factor": 0.0609}
SD15 = {"latent_channels": 4, "scaling_factor": 0.18215}
KINDS = {"sd3": SD3, "sd15": SD15}

Save = Callable[..., Path]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with random autoencoders of SD3's and SD1.5's architecture, as diffusers saves them."""
    from diffusers import AutoencoderKL

    folders = {}
    for kind, settings in KINDS.items():
        torch.manual_seed(0)
        model = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * LEVELS,
            up_block_types=["UpDecoderBlock2D"] * LEVELS,
            block_out_channels=[8] * LEVELS,
            norm_num_groups=4,
            **settings,
        )
        folders[kind] = tmp_path_factory.mktemp("autoencoders") / kind
        model.save_pretrained(folders[kind])
    return folders


@pytest.fixture
def damaged(saved: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a saved autoencoder, to do something to."""
    return Path(shutil.copytree(saved["sd3"], tmp_path / "copy"))


def load(folder: Path | str) -> Autoencoder:
    return load_autoencoder(str(folder), "cpu", torch.float32)


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError) as error:
        load(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


def make_images(n: int = 2, height: int = 32, width: int = 16) -> Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_weights(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS)


@pytest.mark.parametrize("kind", KINDS)
def test_posteriors_are_those_of_diffusers_unscaled(kind: str, saved: dict[str, Path]) -> None:
    from diffusers import AutoencoderKL

    # In float64: two models need not sum in the same order, and in float32 that shows.
    autoencoder, images = load_autoencoder(str(saved[kind]), "cpu", torch.float64), make_images()
    mean, std = autoencoder.encode(images)
    model = AutoencoderKL.from_pretrained(saved[kind], low_cpu_mem_usage=False).double()
    with torch.no_grad():
        expected = model.encode(images.double()).latent_dist
        decoded = model.decode(mean.double()).sample
    for found, exact in (
        (mean, expected.mean),
        (std, expected.std),
        (autoencoder.decode(mean), decoded.clamp(-1, 1)),
    ):
        torch.testing.assert_close(found, exact.float(), rtol=torch.finfo(torch.float32).eps, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_scales_come_from_the_config(kind: str, saved: dict[str, Path]) -> None:
    autoencoder = load(saved[kind])
    mean, std = autoencoder.encode(make_images(3, height=32, width=64))
    assert mean.shape == std.shape == (3, autoencoder.channels, 4, 8)
    assert (std > 0).all()
    assert autoencoder.decode(mean).shape == (3, 3, 32, 64)
    assert (autoencoder.name, autoencoder.downsample) == (kind, 8)
    assert autoencoder.channels == KINDS[kind]["latent_channels"]
    assert autoencoder.scaling_factor == KINDS[kind]["scaling_factor"]
    assert autoencoder.shift_factor == KINDS[kind].get("shift_factor", 0.0)


def test_the_same_batch_gives_the_same_bytes(saved: dict[str, Path]) -> None:
    images = make_images(4)
    first, again = (load(saved["sd3"]).encode(images) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_posterior_is_float32_in_every_dtype(saved: dict[str, Path]) -> None:
    exact = load(saved["sd3"]).encode(make_images())
    rounded = load_autoencoder(str(saved["sd3"]), "cpu", torch.bfloat16).encode(make_images())
    for a, b in zip(exact, rounded, strict=True):
        assert b.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)
        assert not torch.equal(a, b)


def test_hashes_follow_the_settings_and_the_weights(damaged: Path, saved: dict[str, Path]) -> None:
    first = load(saved["sd3"])
    change_config(damaged, _diffusers_version="0.0", _name_or_path="elsewhere")
    same = load(damaged)
    assert (same.config_sha256, same.weights_sha256) == (first.config_sha256, first.weights_sha256)
    change_config(damaged, scaling_factor=2.0)
    assert load(damaged).config_sha256 != first.config_sha256
    change_weights(damaged, lambda weights: weights["encoder.conv_in.bias"].add_(1.0))
    changed = load(damaged)
    assert changed.weights_sha256 != first.weights_sha256
    assert len(changed.weights_sha256) == len(changed.config_sha256) == 64


def test_pixels_are_their_own_latents() -> None:
    pixels, images = load("pixels"), make_images()
    mean, std = pixels.encode(images)
    assert torch.equal(mean, images)
    assert torch.equal(std, torch.zeros_like(images))
    assert torch.equal(pixels.decode(mean), images)
    assert (pixels.name, pixels.channels, pixels.downsample) == ("pixels", 3, 1)
    assert (pixels.scaling_factor, pixels.shift_factor) == (1.0, 0.0)
    assert pixels.config_sha256 == load("pixels").config_sha256


def test_images_that_are_no_multiple_of_the_downsampling_are_refused(saved: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=naming("images", "16x36", "sd3", 8)):
        load(saved["sd3"]).encode(make_images(height=36))


def test_loading_opens_no_connection(saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load(saved["sd3"])


def test_a_folder_that_holds_no_autoencoder_is_refused(damaged: Path, tmp_path: Path) -> None:
    nowhere, empty, pipeline = tmp_path / "nowhere", tmp_path / "empty", tmp_path / "pipeline"
    assert names(refusal(nowhere), nowhere, "AutoencoderKL", '"pixels"')
    empty.mkdir()
    assert names(refusal(empty), empty, "config.json", "save_pretrained")
    pipeline.mkdir()
    damaged.rename(pipeline / "vae")
    assert names(refusal(pipeline), pipeline, "config.json", pipeline / "vae")


def test_weights_are_never_unpickled(damaged: Path) -> None:
    (damaged / WEIGHTS).unlink()
    advice = "save_pretrained(safe_serialization=True)"
    assert names(refusal(damaged), damaged, WEIGHTS, advice)
    (damaged / "diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    assert names(refusal(damaged), damaged, WEIGHTS, "diffusion_pytorch_model.bin", advice)


def test_configs_of_other_models_are_refused(damaged: Path) -> None:
    path = damaged / CONFIG
    change_config(damaged, latents_mean=[0.0] * 16)
    assert names(refusal(damaged), path, "latents_mean", "latents_std")
    change_config(damaged, _class_name="VQModel")
    assert names(refusal(damaged), path, "_class_name", "'VQModel'", "AutoencoderKL")
    path.write_text("{")
    assert names(refusal(damaged), path, "JSON")


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (
            lambda folder: change_weights(folder, lambda weights: weights.pop("encoder.conv_in.bias")),
            (1, "encoder.conv_in.bias", "config.json"),
        ),
        (
            lambda folder: change_weights(folder, lambda weights: weights.update(extra=torch.zeros(1))),
            (1, "extra", "config.json"),
        ),
        (lambda folder: change_config(folder, latent_channels=8), ("AutoencoderKL",)),
        (
            lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-100]),
            ("AutoencoderKL",),
        ),
    ],
    ids=["missing", "left over", "other shapes", "cut off"],
)
def test_weights_that_do_not_fit_are_refused(
    damage: Callable[[Path], Any], named: tuple[object, ...], damaged: Path
) -> None:
    damage(damaged)
    assert names(refusal(damaged), damaged, *named)


def test_without_diffusers_the_error_names_the_extra(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert names(refusal(damaged), damaged, "pip install 'oneflow_dist[latents]'")
    assert load("pixels").channels == 3


def test_a_level_off_by_one_is_48_db() -> None:
    black = torch.full((2, 3, 4, 4), -1.0)
    black_and_one_level = black + torch.tensor([0.0, 2.0 / 255.0]).view(2, 1, 1, 1)
    exact, one_level = psnr_db(black_and_one_level, black).tolist()
    assert one_level == pytest.approx(20.0 * math.log10(255.0), abs=1e-3)
    assert exact == pytest.approx(one_level + 20.0, abs=1e-3)


def test_the_peak_ratio_is_that_of_the_mean_square() -> None:
    zeros = torch.zeros(2, 3, 2, 2)
    shifted = zeros + torch.tensor([0.2, 2.0]).view(2, 1, 1, 1)
    assert psnr_db(shifted, zeros).tolist() == pytest.approx([20.0, 0.0], abs=1e-3)
