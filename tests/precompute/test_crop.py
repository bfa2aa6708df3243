from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.precompute.crop import CropPolicy, crop_to, list_buckets, nearest_bucket
from tests.messages import naming
from tests.precompute.making import picture


def policy(size: int = 64, multiple_of: int = 16, max_aspect: float = 2.0) -> CropPolicy:
    return CropPolicy(size=size, multiple_of=multiple_of, max_aspect=max_aspect)


def test_buckets_are_multiples_within_the_area_and_the_aspect() -> None:
    assert set(list_buckets(policy())) == {(64, 64), (48, 80), (80, 48)}
    for bucket in (found := list_buckets(policy(256, 16, 3.0))):
        assert bucket[0] % 16 == bucket[1] % 16 == 0
        assert bucket[0] * bucket[1] <= 256 * 256
        assert max(bucket) <= 3 * min(bucket)
        assert bucket[::-1] in found
        assert (bucket[0] + 16) * bucket[1] > 256 * 256 or bucket[0] * (bucket[1] + 16) > 256 * 256
    assert (256, 256) in found


def test_an_aspect_of_one_leaves_the_square() -> None:
    assert list_buckets(policy(max_aspect=1.0)) == ((64, 64),)
    assert nearest_bucket(policy(max_aspect=1.0), 10, 1000) == (64, 64)


def test_the_nearest_bucket_is_nearest_by_factor() -> None:
    assert nearest_bucket(policy(), 100, 100) == (64, 64)
    assert nearest_bucket(policy(), 100, 128) == (64, 64)  # below the root of 5/3
    assert nearest_bucket(policy(), 100, 130) == (48, 80)
    assert nearest_bucket(policy(), 130, 100) == (80, 48)
    assert nearest_bucket(policy(), 9, 9000) == (48, 80)


@pytest.mark.parametrize(("height", "width"), [(64, 200), (200, 64), (1, 1), (7, 3000)])
def test_a_crop_has_its_buckets_size_whatever_it_is_made_of(height: int, width: int) -> None:
    assert crop_to(picture(0, height, width), (48, 80)).size == (80, 48)


def test_a_picture_of_its_buckets_size_stays_as_it_is() -> None:
    original = picture(0, 48, 80)
    assert np.array_equal(np.asarray(crop_to(original, (48, 80))), np.asarray(original))


def test_a_crop_keeps_the_middle() -> None:
    bars = Image.fromarray(np.repeat(np.array([[0, 0, 255, 255, 0, 0]], dtype=np.uint8), 32, axis=1).repeat(64, axis=0))
    middle = np.asarray(crop_to(bars, (64, 64)).convert("L"))
    assert (middle[:, 4:-4] > 200).all()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"size": 60}, ("--size", 60, "--multiple-of", 16, 64)),
        ({"max_aspect": 0.5}, ("--max-aspect", 0.5, 1)),
        ({"max_aspect": float("nan")}, ("--max-aspect", "nan", 1)),
    ],
)
def test_an_impossible_policy_is_refused(wrong: dict[str, float], named: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match=naming(*named)):
        policy(**wrong)
