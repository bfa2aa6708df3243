"""Which part of a picture is encoded, at which size: the aspect bucket nearest to its own shape."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from PIL import Image

RESAMPLING = "lanczos"
REDUCING_GAP = 2.0  # a picture is first shrunk by whole numbers, to no less than this times the wanted size


@dataclass(frozen=True, slots=True, kw_only=True)
class CropPolicy:
    """Pictures cover a bucket of about `size` x `size` pixels, and what stands over is cut off at both ends."""

    size: int
    multiple_of: int  # of both sides of every bucket
    max_aspect: float  # 1: squares only

    def __post_init__(self) -> None:
        if self.multiple_of < 1 or self.size < 1 or self.size % self.multiple_of:
            raise ValueError(
                f"--size: {self.size} is no multiple of --multiple-of ({self.multiple_of}); "
                f"set it to {max(1, round(self.size / max(1, self.multiple_of))) * max(1, self.multiple_of)}"
            )
        if not (math.isfinite(self.max_aspect) and self.max_aspect >= 1):
            raise ValueError(f"--max-aspect: {self.max_aspect} must be 1 (square) or more, as 2.0")

    def describe(self) -> dict[str, int | float | str]:
        """What a shard's header says of it."""
        return {
            "size": self.size,
            "multiple_of": self.multiple_of,
            "max_aspect": self.max_aspect,
            "resampling": RESAMPLING,
        }


@functools.cache
def list_buckets(policy: CropPolicy) -> tuple[tuple[int, int], ...]:
    """All (height, width) that are as large as `size` squared allows in one direction, in order of aspect."""
    step, area = policy.multiple_of, policy.size**2
    tall = {(side, area // side // step * step) for side in range(step, area // step + 1, step)}
    both = tall | {(width, height) for height, width in tall}
    fitting = [(h, w) for h, w in both if min(h, w) > 0 and max(h, w) <= policy.max_aspect * min(h, w)]
    return tuple(sorted(fitting, key=lambda bucket: (bucket[1] / bucket[0], bucket)))


@functools.lru_cache(maxsize=4096)
def nearest_bucket(policy: CropPolicy, height: int, width: int) -> tuple[int, int]:
    """The bucket whose aspect differs by the smallest factor; of several such the largest."""
    aspect = math.log(width / height)

    def distance(bucket: tuple[int, int]) -> tuple[float, int, tuple[int, int]]:
        return round(abs(math.log(bucket[1] / bucket[0]) - aspect), 9), -bucket[0] * bucket[1], bucket

    return min(list_buckets(policy), key=distance)


def cover_scale(bucket: tuple[int, int], height: int, width: int) -> float:
    """How much a picture grows or shrinks until it just covers a bucket."""
    return max(bucket[0] / height, bucket[1] / width)


def crop_to(picture: Image.Image, bucket: tuple[int, int]) -> Image.Image:
    """The middle of a picture, resized to a bucket in one step."""
    height, width = bucket
    if picture.size == (width, height):
        return picture
    scale = cover_scale(bucket, picture.height, picture.width)
    left, top = (picture.width - width / scale) / 2, (picture.height - height / scale) / 2
    box = (
        max(0.0, left),
        max(0.0, top),
        min(picture.width, left + width / scale),
        min(picture.height, top + height / scale),
    )
    return picture.resize((width, height), Image.Resampling.LANCZOS, box=box, reducing_gap=REDUCING_GAP)
