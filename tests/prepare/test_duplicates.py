from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from oneflow_dist.prepare.duplicates import MAX_DISTANCE, Signature, group_near, join, sign_picture
from tests.prepare.nasty import store
from tests.prepare.prepared import scene

ALTERED = {
    "JPEG": lambda picture: Image.open(io.BytesIO(store(picture.copy(), "JPEG", quality=30))).convert("RGB"),
    "half": lambda picture: picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS),
    "brighter": lambda picture: ImageEnhance.Brightness(picture).enhance(1.1),
    "darker": lambda picture: ImageEnhance.Brightness(picture).enhance(0.85),
    "cropped": lambda picture: picture.crop((2, 2, picture.width - 2, picture.height - 2)),
}


@pytest.mark.parametrize("name", ALTERED)
def test_altered_copies_are_found_and_nothing_else(name: str) -> None:
    scenes = [scene(seed, 96, 96) for seed in range(60)]
    copies = [ALTERED[name](picture) for picture in scenes]
    groups = group_near([sign_picture(picture, False) for picture in (*scenes, *copies)])
    assert groups[:60] == list(range(60))
    assert sum(own == number for number, own in enumerate(groups[60:])) >= 57
    assert all(own in (number, 60 + number) for number, own in enumerate(groups[60:]))


def test_pictures_of_one_colour_are_near_to_those_of_the_same_alone() -> None:
    plain = [sign_picture(Image.new("RGB", (32, 32), colour), True) for colour in ("red", "green", "red")]
    assert group_near(plain) == [0, 1, 0]


def test_the_colours_of_pictures_with_one_shape_tell_them_apart() -> None:
    hearts = []
    for colour in ("red", "blue"):
        picture = Image.new("RGB", (64, 64), "white")
        picture.paste(colour, (16, 20, 50, 44))
        hearts.append(sign_picture(picture, False))
    assert group_near(hearts) == [0, 1]


def test_no_pair_within_the_distance_is_missed() -> None:
    rng = np.random.default_rng(0)
    bits = [int(value) for value in rng.integers(0, 1 << 63, 400, dtype=np.uint64)]
    flips = [sum(1 << int(bit) for bit in rng.choice(64, MAX_DISTANCE, replace=False)) for _ in bits]
    colours = bytes(range(192))
    signatures = [Signature(value, colours) for value in (*bits, *(b ^ f for b, f in zip(bits, flips, strict=True)))]
    assert group_near(signatures) == [*range(400), *range(400)]


def test_a_bit_more_is_too_far() -> None:
    colours = bytes(range(192))
    near, far = ((1 << bits) - 1 for bits in (MAX_DISTANCE, MAX_DISTANCE + 1))
    assert group_near([Signature(0, colours), Signature(near, colours)]) == [0, 0]
    assert group_near([Signature(0, colours), Signature(far, colours)]) == [0, 1]


def test_groups_are_named_by_their_first() -> None:
    assert join(6, [(5, 3), (3, 1), (4, 2)]) == [0, 1, 2, 1, 2, 1]
    assert group_near([]) == []
