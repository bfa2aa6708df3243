from __future__ import annotations

import hashlib
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from oneflow_dist.evaluation.metrics import features as module
from oneflow_dist.evaluation.metrics.features import BATCH, Extractor, load_extractor
from oneflow_dist.evaluation.metrics.resizing import resize
from oneflow_dist.modality import EFFICIENTNET
from oneflow_dist.model.understanding import LITE0_SHA256, load_understanding
from tests.messages import naming
from tests.precompute.making import picture, save_siglip

PICTURES = [picture(seed, 20 + seed, 30) for seed in range(3)]


class Layers(nn.Module):
    """The means of 32 x 64 patches, as 2048 features: of the first colour."""

    def forward(self, colours: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(colours[:, :1], (32, 64))


class Script(nn.Module):
    """The interface of inception-2015-12-05.pt: layers take colours from -1 to 1; what calls them would resize."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()

    def forward(self, colours: Tensor, return_features: bool = False) -> Tensor:
        assert return_features
        return self.layers((colours - 128.0) / 128.0).flatten(1)


class FeatureExtractorInceptionV3(nn.Module):
    """A stand-in of torch-fidelity's: small layers one after another, and a classifier behind them."""

    def __init__(self, name: str, features_list: Sequence[str], feature_extractor_weights_path: Any) -> None:
        super().__init__()
        assert features_list == ["2048"]
        self.first = nn.Conv2d(3, 16, 8, 32)
        self.last = nn.Conv2d(16, 2048, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2048, 8)
        if feature_extractor_weights_path is not None:
            self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "inception-2015-12-05.pt"
    return save_script(Script(), path)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    package.FeatureExtractorInceptionV3 = FeatureExtractorInceptionV3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, package.__name__, package)
    torch.manual_seed(0)
    path = tmp_path / "weights-inception.pth"
    torch.save(FeatureExtractorInceptionV3("made", ["2048"], None).state_dict(), path)
    return path


def save_script(model: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript, of which the official file is
        torch.jit.save(torch.jit.script(model), path)
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def resized(pictures: Sequence[Image.Image]) -> Tensor:
    """As Inception is shown pictures: from -1 to 1."""
    seen = np.stack([resize(shown, 299) for shown in pictures])
    return (torch.from_numpy(seen).permute(0, 3, 1, 2) - 128.0) / 128.0


@pytest.fixture(scope="module")
def lite0() -> Extractor:
    return load_extractor(EFFICIENTNET, "cpu")


def test_features_of_efficientnet_are_the_mean_of_its_map(lite0: Extractor) -> None:
    encoder = load_understanding(EFFICIENTNET, "cpu", torch.float32)
    seen = torch.from_numpy(np.stack([np.asarray(encoder.view.resize(shown)) for shown in PICTURES]))
    expected = encoder.encode(seen).mean(dim=(2, 3)).numpy()
    assert lite0(PICTURES) == pytest.approx(expected, abs=1e-5)
    assert expected.std() > 0.05
    assert (lite0.name, lite0.sha256, lite0.size, lite0.dim) == (EFFICIENTNET, LITE0_SHA256, 224, 1280)


def test_features_of_a_siglip_are_the_mean_of_its_patches(tmp_path: Path) -> None:
    folder = save_siglip(tmp_path / "tiny")
    extractor = load_extractor(str(folder), "cpu")
    encoder = load_understanding(str(folder), "cpu", torch.float32)
    seen = torch.from_numpy(np.stack([np.asarray(encoder.view.resize(shown)) for shown in PICTURES]))
    assert extractor(PICTURES) == pytest.approx(encoder.encode(seen).mean(dim=(2, 3)).numpy(), abs=1e-5)
    assert (extractor.name, extractor.size, extractor.dim) == ("tiny", 16, 16)
    assert extractor.sha256 == sha256(folder / "model.safetensors")


def test_what_is_not_inception_is_never_called_fid(lite0: Extractor) -> None:
    assert not lite0.is_official
    assert lite0.title("KID") == "KID (efficientnet-lite0)"
    assert "FID" not in lite0.title("FID")
    assert "efficientnet-lite0" in lite0.title("FID")


def test_features_do_not_depend_on_batches(lite0: Extractor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = lite0(PICTURES)
    monkeypatch.setattr(module, "BATCH", 2)
    assert lite0(PICTURES) == pytest.approx(whole, abs=1e-4)


def test_no_pictures_have_no_features(lite0: Extractor) -> None:
    assert lite0([]).shape == (0, 1280)


def test_pictures_of_any_mode_are_seen_in_colour(lite0: Extractor) -> None:
    grey = PICTURES[0].convert("L")
    assert lite0([grey, grey.convert("RGB")])[0] == pytest.approx(lite0([grey.convert("RGB")])[0], abs=1e-4)


def test_a_script_is_shown_what_clean_fid_shows_it(script: Path) -> None:
    extractor = load_extractor(str(script), "cpu", sha256(script))
    found = extractor(PICTURES * 30)  # more than one batch
    assert len(found) == 90 > BATCH
    assert found[:3] == pytest.approx(Layers()(resized(PICTURES)).flatten(1).numpy(), abs=1e-5)
    assert (extractor.size, extractor.dim, extractor.is_official) == (299, 2048, False)


def test_a_script_runs_only_where_its_hash_is_known_or_stated(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = sha256(script)
    with pytest.raises(ValueError, match=naming(script, own)):
        load_extractor(str(script), "cpu")
    with pytest.raises(ValueError, match=naming(script, own, "f" * 64)):
        load_extractor(str(script), "cpu", "f" * 64)
    monkeypatch.setattr(module, "OFFICIAL", {own})
    official = load_extractor(str(script), "cpu")
    assert official.is_official
    assert (official.title("FID"), official.title("KID")) == ("FID", "KID")


def test_weights_of_torch_fidelity_give_what_its_layers_give(weights: Path) -> None:
    extractor = load_extractor(str(weights), "cpu")
    model = FeatureExtractorInceptionV3("made", ["2048"], weights)
    with torch.no_grad():
        expected = model.pool(model.last(model.first(resized(PICTURES)))).flatten(1).numpy()
    assert extractor(PICTURES) == pytest.approx(expected, abs=1e-5)
    assert (extractor.name, extractor.sha256, extractor.is_official) == ("weights-inception", sha256(weights), False)


def test_known_weights_are_official(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OFFICIAL", {sha256(weights)})
    assert load_extractor(str(weights), "cpu").title("FID") == "FID"


def test_another_hash_than_stated_is_refused(weights: Path) -> None:
    with pytest.raises(ValueError, match=naming(weights, sha256(weights), "0" * 64)):
        load_extractor(str(weights), "cpu", "0" * 64)
    with pytest.raises(ValueError, match=naming(EFFICIENTNET, LITE0_SHA256, "0" * 64)):
        load_extractor(EFFICIENTNET, "cpu", "0" * 64)


def test_weights_are_never_unpickled_as_a_program(weights: Path) -> None:
    torch.save({"first.weight": print}, weights)
    with pytest.raises(ValueError, match=naming(weights)):
        load_extractor(str(weights), "cpu")


@pytest.mark.parametrize("content", [b"", b"torn", b"PK\x03\x04"])
def test_damaged_weights_are_refused(content: bytes, weights: Path) -> None:
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=naming(weights)):
        load_extractor(str(weights), "cpu")


def test_a_torn_or_other_script_is_refused(script: Path, tmp_path: Path) -> None:
    other = save_script(nn.Sequential(nn.Linear(2, 2)), tmp_path / "other.pt")
    with pytest.raises(ValueError, match=naming(other, "TorchScript")):
        load_extractor(str(other), "cpu", sha256(other))


def test_a_script_with_other_features_is_refused(tmp_path: Path) -> None:
    model = Script()
    model.layers = nn.Sequential(nn.AdaptiveAvgPool2d(4))  # type: ignore[assignment]
    path = save_script(model, tmp_path / "small.pt")
    with pytest.raises(ValueError, match=naming(path, 48, 2048)):
        load_extractor(str(path), "cpu", sha256(path))(PICTURES)


def test_without_torch_fidelity_the_error_names_the_extra(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(ValueError, match=naming(weights, "torch-fidelity")):
        load_extractor(str(weights), "cpu")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=naming(tmp_path / "inception.pth", EFFICIENTNET)):
        load_extractor(str(tmp_path / "inception.pth"), "cpu")
