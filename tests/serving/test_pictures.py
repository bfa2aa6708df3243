"""Pixels and latents on their way through JSON."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.serving.pictures import PREFIX, data_url, encode_event, read_latent, write_latent


def pixels_of(url: str | None) -> np.ndarray:
    assert url is not None
    with Image.open(io.BytesIO(base64.b64decode(url.removeprefix(PREFIX)))) as picture:
        return np.asarray(picture)


@pytest.mark.parametrize("shape", [(8, 8), (5, 7, 3)])
def test_a_data_url_has_the_pixels(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(256, size=shape).astype(np.uint8)
    assert np.array_equal(pixels_of(data_url(pixels)), pixels)
    assert data_url(None) is None


@pytest.mark.parametrize("shape", [(1, 8, 8), (4,), (2, 3, 4, 5)])
def test_latents_come_back_to_the_bit(shape: tuple[int, ...]) -> None:
    latent = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    read = read_latent(**json.loads(json.dumps(write_latent(latent))))
    assert read.dtype == np.float32
    assert (read.shape, read.tobytes()) == (latent.shape, latent.tobytes())


@pytest.mark.parametrize(
    ("shape", "data"), [([2], "AAAA"), ([1], "!"), ([2**30, 2**30], "AAAA"), ([], ""), ([0], ""), ([-1], "AAAAAA==")]
)
def test_what_is_no_latent_is_refused(shape: list[int], data: str) -> None:
    with pytest.raises(ValueError, match=r"^latent\.(shape|data): "):
        read_latent(shape, data)


def test_every_array_of_an_event_can_be_json() -> None:
    pixels, latent = np.zeros((2, 2), dtype=np.uint8), np.zeros((1, 2), dtype=np.float32)
    event = {
        "pictures": {"image": {0: pixels}},
        "parts": [{"text": "a"}, {"modality": "image", "picture": pixels}],
        "written": [{"modality": "image", "picture": pixels}],
        "pieces": {"image": [{"picture": None, "latent": {"modality": "image", "data": latent}}]},
    }
    said = json.loads(json.dumps(encode_event(event)))
    assert said["pictures"]["image"]["0"] == said["parts"][1]["picture"] == said["written"][0]["picture"]
    assert said["pieces"]["image"][0]["latent"] == {"modality": "image", **write_latent(latent)}
