from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.modality import EFFICIENTNET
from oneflow_dist.views import CONFIG, PROCESSOR, View, read_view
from tests.messages import names
from tests.precompute.making import picture

VISION = {"hidden_size": 24, "image_size": 32, "patch_size": 8}
PROCESSED = {"size": {"height": 32, "width": 32}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
SIGLIP2 = {  # google/siglip2-base-patch16-256, which leaves out what transformers takes by itself
    "model_type": "siglip",
    "text_config": {"model_type": "siglip_text_model", "vocab_size": 256000},
    "vision_config": {"image_size": 256, "model_type": "siglip_vision_model"},
}


def write(folder: Path, config: Any, processor: Any) -> str:
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config))
    (folder / PROCESSOR).write_text(json.dumps(processor))
    return str(folder)


def read(folder: Path, **processor: Any) -> View:
    return read_view(write(folder, {"model_type": "siglip_vision_model", **VISION}, PROCESSED | processor))


def refusal(folder: str) -> str:
    with pytest.raises(ValueError) as error:
        read_view(folder)
    return str(error.value)


def test_a_tower_alone_and_one_inside_a_whole_siglip_have_the_same_view(tmp_path: Path) -> None:
    view = read(tmp_path)
    assert (view.height, view.width, view.channels, view.grid) == (32, 32, 24, (4, 4))
    assert view.resampling == Image.Resampling.BILINEAR
    assert read_view(write(tmp_path, {"model_type": "siglip", "vision_config": VISION}, PROCESSED)) == view


def test_mean_and_std_are_of_colours_from_0_to_255(tmp_path: Path) -> None:
    view = read(tmp_path / "parts")
    np.testing.assert_allclose([*view.mean, *view.std], [127.5] * 3 + [63.75] * 3)
    assert read(tmp_path / "whole", rescale_factor=1.0).mean == (0.5,) * 3


def test_a_siglip_2_of_one_size_is_a_siglip(tmp_path: Path) -> None:
    view = read_view(write(tmp_path, SIGLIP2, PROCESSED | {"size": {"height": 256, "width": 256}}))
    assert (view.channels, view.grid) == (768, (16, 16))


def test_patches_that_do_not_fit_are_no_part_of_the_map(tmp_path: Path) -> None:
    config = {"model_type": "siglip_vision_model", **VISION, "image_size": 38}
    assert read_view(write(tmp_path, config, PROCESSED | {"size": {"height": 38, "width": 38}})).grid == (4, 4)


def test_a_view_shows_all_of_a_picture_whatever_its_aspect(tmp_path: Path) -> None:
    view = read(tmp_path)
    image = picture(0, 64, 128)
    assert view.resize(image).size == (32, 32)
    assert view.scale_of(64, 128) == 1.0  # a JPEG is decoded at twice the size or more


def test_the_view_of_efficientnet_needs_no_files() -> None:
    view = read_view(EFFICIENTNET)
    assert (view.height, view.width, view.channels, view.grid) == (224, 224, 1280, (7, 7))


def test_a_view_is_read_without_a_network() -> None:
    code = f"import sys; from oneflow_dist.views import read_view; read_view({EFFICIENTNET!r})"
    code += "; sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'efficientnet_lite_pytorch')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_is_no_siglip_is_refused(tmp_path: Path) -> None:
    assert names(refusal(str(tmp_path)), tmp_path, CONFIG, "save_pretrained", EFFICIENTNET)
    folder = write(tmp_path, {"model_type": "clip"}, PROCESSED)
    assert names(refusal(folder), tmp_path / CONFIG, "model_type", "clip", "siglip, siglip_vision_model")
    write(tmp_path, [1], PROCESSED)
    assert names(refusal(folder), tmp_path / CONFIG)
    (tmp_path / CONFIG).write_text("{")
    assert names(refusal(folder), tmp_path / CONFIG, "JSON")


@pytest.mark.parametrize("kind", ["siglip2", "siglip2_vision_model"])
def test_a_siglip_2_of_any_size_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    folder = write(tmp_path, {"model_type": kind}, PROCESSED)
    assert names(refusal(folder), tmp_path / CONFIG, "model_type", kind, "NaFlex")


@pytest.mark.parametrize(
    ("config", "processor", "named"),
    [
        ({}, {"size": {"shortest_edge": 32}}, (PROCESSOR,)),
        ({}, {"do_rescale": False}, (PROCESSOR,)),
        ({}, {"resample": 99}, (PROCESSOR, "resample", 99)),
        ({}, {"resample": None}, (PROCESSOR, "resample", None)),
        ({}, {"size": {"height": 32, "width": 48}}, (PROCESSOR, "size", "48x32", "image_size", 32)),
        ({"image_size": [32, 32]}, {}, (CONFIG, "image_size", "[32, 32]")),
        ({"patch_size": 0}, {}, (CONFIG, "patch_size", 0)),
    ],
)
def test_a_view_that_is_not_understood_is_refused(
    config: dict[str, Any], processor: dict[str, Any], named: tuple[object, ...], tmp_path: Path
) -> None:
    folder = write(tmp_path, {"model_type": "siglip_vision_model", **VISION, **config}, PROCESSED | processor)
    assert names(refusal(folder), tmp_path / str(named[0]), *named[1:])
