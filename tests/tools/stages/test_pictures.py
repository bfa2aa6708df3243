from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.data.codec import pixels_to_latent
from tests.precompute.making import encode, picture
from tools.digits.grammar import load_split
from tools.stages.pictures import SIDE, SMALL, cut_boxes, enlarge, read_digits, shrink, turn


def pixels(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


@pytest.mark.parametrize("side", [SIDE, SMALL])
@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_pictures_become_one_size_in_colour(mode: str, side: int) -> None:
    assert pixels(shrink(encode(picture(0, 72, 96, mode)), side)).shape == (side, side, 3)


def test_a_picture_lies_in_eight_ways_and_the_first_is_its_own() -> None:
    png = encode(picture(0))
    ways = [pixels(turn(png, way)) for way in range(8)]
    assert np.array_equal(ways[0], pixels(png))
    assert len({way.tobytes() for way in ways}) == 8
    assert all(np.array_equal(np.sort(way, axis=None), np.sort(ways[0], axis=None)) for way in ways)


def test_boxes_are_cut_where_they_lie() -> None:
    whole = np.full((100, 400, 3), 255, np.uint8)
    for number, left in enumerate((0, 150, 300)):
        whole[:, left : left + 100] = 60 * number
    boxes = [pixels(box) for box in cut_boxes(encode(Image.fromarray(whole)))]
    assert [int(box.min()) for box in boxes] == [int(box.max()) for box in boxes] == [0, 60, 120]


@pytest.mark.parametrize("side", [SIDE, SMALL])
def test_an_enlarged_digit_is_read_as_before(side: int) -> None:
    images, labels = load_split("train")
    latents = [pixels_to_latent(pixels(enlarge(image, side))) for image in images[:50]]
    assert latents[0].shape == (3, side, side)
    assert (read_digits(latents) == labels[:50]).all()
