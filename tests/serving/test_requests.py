"""Bodies as orders: what is read, and what is refused where."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.config import Config
from oneflow_dist.serving.orders import Hole, Latent, Limits, Make, Order, Picture, Text, Tokens
from oneflow_dist.serving.pictures import write_latent
from oneflow_dist.serving.requests import GenerateBody, check_picture, decode_base64, read_body, read_generate
from tests.messages import naming


def saved(kind: str = "PNG", size: tuple[int, int] = (8, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("L", size).save(file, kind)
    return file.getvalue()


PNG = saved()
DATA = base64.b64encode(PNG).decode()


def read(body: dict[str, Any], config: Config, uploads: dict[str, bytes] | None = None, **limits: int) -> Order:
    own = read_body(GenerateBody, json.dumps(body).encode())
    return read_generate(own, uploads or {}, config, Limits(**limits))


def test_every_kind_of_part_is_read_in_order(config: Config) -> None:
    latent = np.linspace(-1, 1, 64, dtype=np.float32).reshape(1, 8, 8)
    parts = [
        {"text": "a"},
        {"hole": True},
        {"make": "image"},
        {"image": DATA},
        {"image": f"data:image/png;base64,{DATA}", "time": 0.5},
        {"image": {"upload": "photo"}},
        {"tokens": [3, 4]},
        {"latent": {"modality": "image", **write_latent(latent)}},
    ]
    *most, last = read({"parts": parts}, config, {"photo": PNG}).parts
    assert most == [Text("a"), Hole(), Make("image"), Picture(PNG), Picture(PNG, 0.5), Picture(PNG), Tokens((3, 4))]
    assert isinstance(last, Latent)
    assert last.latent.tobytes() == latent.tobytes()


def test_what_is_not_said_is_the_default(config: Config) -> None:
    order = read({}, config)
    assert (order.parts, order.sampling, order.seed, order.follows) == ((), config.sampling, 0, "end")
    assert read({"stream": True, "preview_steps": 2}, config).follows == "steps"


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"parts": {}}, "parts"),
        ({"parts": [1]}, "parts.0"),
        ({"parts": [{"text": "a"}, {"text": 1}]}, "parts.1.text"),
        ({"parts": [{"text": "a", "image": DATA}]}, "parts.0.image"),
        ({"parts": [{"hole": False}]}, "parts.0.hole"),
        ({"parts": [{"image": DATA, "time": 1.5}]}, "parts.0.time"),
        ({"parts": [{"tokens": [1.5]}]}, "parts.0.tokens.0"),
        ({"parts": [{"latent": {"modality": "image", "shape": [0], "data": ""}}]}, "parts.0.latent.shape.0"),
        ({"seed": 2**63}, "seed"),
        ({"seed": True}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"modle": "x"}, "modle"),
        ({"preview_steps": -1}, "preview_steps"),
        ({"settings": {"steps": None}}, "settings.steps"),
    ],
    ids=str,
)
def test_what_is_no_request_is_one_line_that_says_where(body: dict[str, Any], place: str, config: Config) -> None:
    with pytest.raises(ValueError, match=f"^{place}") as error:
        read(body, config)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"parts":[{"text":"\xff"}]}', b'{"seed":1e400}'])
def test_what_is_no_json_of_an_object_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^(request|seed)"):
        read_body(GenerateBody, content)


@pytest.mark.parametrize(
    ("body", "limits", "named"),
    [
        ({"parts": [{"text": "a"}] * 5}, {"parts": 4}, ("parts", 5, 4)),
        ({"parts": [{"image": DATA}] * 3}, {"pictures": 2}, ("images", 3, 2)),
        ({"parts": [{"text": "abc"}] * 3}, {"characters": 8}, ("parts", 9, 8)),
        ({"parts": [{"image": DATA}]}, {"pixels": 63}, ("images", 64, 63)),
        ({"parts": [{"image": DATA}] * 3}, {"pixels": 3 * 64 - 1}, ("images", 192, 191)),
        ({"parts": [{"image": {"upload": "other"}}]}, {}, ("upload", "other")),
        ({"settings": {"steps": 2000}}, {}, ("settings.steps", 2000, 1000)),
        ({"parts": [{"tokens": [1] * 3}] * 2, "settings": {"max_rows": 5}}, {}, ("tokens", 6, "settings.max_rows", 5)),
        (
            {"parts": [{"latent": {"modality": "image", **write_latent(np.full(1, -3e38, dtype=np.float32))}}]},
            {},
            ("latent.data", "3e+38"),
        ),
    ],
    ids=str,
)
def test_more_than_a_server_allows_is_refused_with_both_numbers(
    body: dict[str, Any], limits: dict[str, int], named: tuple[Any, ...], config: Config
) -> None:
    with pytest.raises(ValueError, match=naming(*named)):
        read(body, config, **limits)


@pytest.mark.parametrize(
    "text",
    ["file:///etc/passwd", "http://127.0.0.1/x.png", "/etc/passwd", "../x.png", "data:image/png,x", "data:", "é"],
)
def test_neither_addresses_nor_paths_are_pictures(text: str) -> None:
    with pytest.raises(ValueError, match=r"^image: "):
        check_picture(decode_base64(text, "image"), "image")


@pytest.mark.parametrize("head", ["", "data:image/png;base64,", "data:;base64,", "data:image/png;name=a;base64,"])
def test_base64_is_taken_alone_and_in_a_data_url(head: str) -> None:
    assert decode_base64(head + DATA, "image") == PNG


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_three_kinds_of_pictures_are_taken_as_they_are(kind: str) -> None:
    data = saved(kind)
    assert check_picture(data, "image") == data


@pytest.mark.parametrize("data", [saved("GIF"), saved("TIFF"), saved("BMP"), b"<svg/>", b"", b"\x89PNG", PNG[:20]])
def test_other_kinds_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=naming("image", len(data))):
        check_picture(data, "image")


def test_a_picture_that_says_it_is_huge_is_refused_before_it_is_decoded(config: Config) -> None:
    head = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    data = PNG[:8] + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head)) + PNG[33:]
    with pytest.raises(ValueError, match=naming("images", 60_000**2)):
        read({"parts": [{"image": base64.b64encode(data).decode()}]}, config)


def test_pictures_may_have_as_many_pixels_together_as_a_server_allows(config: Config) -> None:
    assert len(read({"parts": [{"image": DATA}] * 3}, config, pixels=3 * 64).parts) == 3
