from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from oneflow_dist.data.latents import decode_array
from oneflow_dist.precompute.features import PROCESSOR, WEIGHTS, Tower, load_tower
from tests.messages import names
from tests.precompute.making import picture, read_tar, run, write_shards


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random vision tower of four patches, with its processor."""
    from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

    folder = tmp_path_factory.mktemp("siglip") / "tiny"
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    SiglipVisionModel(config).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def load(folder: Path) -> Tower:
    return load_tower(str(folder), "cpu", torch.float32)


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError) as error:
        load(folder)
    return str(error.value)


def test_features_are_those_of_transformers(siglip: Path) -> None:
    from transformers import SiglipImageProcessorPil, SiglipVisionModel

    image = picture(0, 40, 30)
    tower = load(siglip)
    views = torch.from_numpy(np.asarray(tower.view.resize(image)).copy())[None]
    inputs = SiglipImageProcessorPil.from_pretrained(siglip)(image, return_tensors="pt")
    with torch.no_grad():
        expected = SiglipVisionModel.from_pretrained(siglip)(**inputs).last_hidden_state
    found = tower.encode(views)
    assert (found.shape, found.dtype) == ((1, 4, 16), np.float16)
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-3)


def test_features_lie_beside_the_latents(siglip: Path, tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "raw", num_shards=1, samples=2)
    run(shards, tmp_path / "out", features=str(siglip))
    files = read_tar(tmp_path / "out" / shards[0].name)
    for name in ("000.features.npy", "doc0.1.features.npy"):
        assert decode_array(files[name], name).shape == (4, 16)
    header = json.loads((tmp_path / "out" / "settings.json").read_text())["features"]
    assert header == load(siglip).describe()
    assert header["name"] == "tiny"


def test_a_folder_without_a_tower_is_refused(siglip: Path, tmp_path: Path) -> None:
    assert names(refusal(tmp_path), tmp_path, "config.json", "save_pretrained")
    for name in ("config.json", PROCESSOR, WEIGHTS):
        (tmp_path / name).write_bytes((siglip / name).read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    assert names(refusal(tmp_path), tmp_path / "config.json", "model_type", "clip", "siglip, siglip_vision_model")
    (tmp_path / "config.json").write_bytes((siglip / "config.json").read_bytes())
    (tmp_path / PROCESSOR).write_text('{"size": {"shortest_edge": 16}}')
    assert names(refusal(tmp_path), tmp_path / PROCESSOR)
    (tmp_path / PROCESSOR).write_bytes((siglip / PROCESSOR).read_bytes())
    (tmp_path / WEIGHTS).write_bytes((siglip / WEIGHTS).read_bytes()[:-50])
    assert names(refusal(tmp_path), tmp_path, "SigLIP")


def test_without_transformers_the_error_names_the_extra(siglip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert names(refusal(siglip), siglip, "pip install oneflow_dist[latents]")
