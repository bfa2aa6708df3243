from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.evaluation.metrics.resizing import resize

REFERENCE = json.loads((Path(__file__).parent / "resizing_reference.json").read_text())  # of clean-fid


def random_picture(seed: int, height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("case", REFERENCE["cases"], ids=lambda case: f"{case['height']}x{case['width']}")
def test_colours_are_those_of_clean_fid(case: dict[str, Any]) -> None:
    found = resize(random_picture(case["seed"], case["height"], case["width"]), case["side"])
    assert found.mean((0, 1), dtype=np.float64) == pytest.approx(case["means"], abs=1e-3)
    assert found.std(dtype=np.float64) == pytest.approx(case["std"], abs=1e-3)
    for pixel in case["pixels"]:
        assert found[tuple(pixel["at"])] == pytest.approx(pixel["colours"], abs=1e-3)


def test_colours_are_neither_rounded_nor_beyond_black_and_white() -> None:
    found = resize(random_picture(0, 20, 30), 50)
    assert (found.min(), found.max()) == (0.0, 255.0)
    assert np.abs(found - found.round()).max() > 0.4


def test_at_its_own_size_a_picture_stays_as_it_is() -> None:
    picture = random_picture(0, 24, 24)
    assert np.array_equal(resize(picture, 24), np.asarray(picture))


def test_a_fine_pattern_shrinks_to_grey() -> None:
    """A filter that is not widened would pick black or white."""
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    assert resize(Image.fromarray(stripes), 8)[1:-1, 1:-1] == pytest.approx(127.5, abs=4)


def test_a_grey_picture_has_three_equal_colours() -> None:
    found = resize(random_picture(0, 12, 12).convert("L"), 8)
    assert np.array_equal(found[..., 0], found[..., 1])
    assert np.array_equal(found[..., 0], found[..., 2])
