from __future__ import annotations

import io
import struct
import zlib
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from oneflow_dist.data.moving import decode_frames, encode_animation, encode_frames
from tests.messages import Message
from tests.precompute.making import encode, png_of_size

NAME = "sample a/b/c, video 2"
ADVICE = "; write it again or remove the sample"
Kind = Literal["png", "gif"]
both = pytest.mark.parametrize("kind", ["png", "gif"])


def frames(mode: str = "L", number: int = 4, height: int = 5, width: int = 7, seed: int = 0) -> list[Image.Image]:
    shape = (number, height, width) + ((3,) if mode == "RGB" else ())
    return [Image.fromarray(x) for x in np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8)]


def as_written_by_pillow(pictures: list[Image.Image], **options: Any) -> bytes:
    return encode(pictures[0], "png", save_all=True, append_images=pictures[1:], duration=80, **options)


def survives(pictures: list[Image.Image], data: bytes) -> bool:
    found = decode_frames(encode_frames(data, pictures[0].mode, NAME))
    return [x.tobytes() for x in found] == [x.tobytes() for x in pictures]


def refusal(data: bytes) -> str:
    with pytest.raises(ValueError) as error:
        encode_frames(data, "L", NAME)
    return Message(error.value)


# What survives.


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_frames_survive_being_a_latent(mode: str) -> None:
    pictures = frames(mode)
    data = encode_animation(pictures, 100, "png")
    latent = encode_frames(data, mode, NAME)
    assert latent.dtype == np.float32
    assert latent.shape == (len(mode), 4, 5, 7)
    assert latent[-1, 2, 3, 4] == pytest.approx(np.asarray(pictures[2])[3, 4].flat[-1] / 127.5 - 1, abs=1e-6)
    assert survives(pictures, data)


def test_every_grey_level_survives() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    pictures = [Image.fromarray(levels), Image.fromarray(255 - levels)]
    assert survives(pictures, encode_animation(pictures, 40, "png"))


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_equal_frames_stay_as_many_as_they_are(mode: str) -> None:
    first, second = frames(mode, 2, height=2, width=2)
    for pictures in ([first, first], [first] * 5, [first, second, second, second, first, first]):
        assert survives(pictures, encode_animation(pictures, 100, "png"))


@both
def test_an_animation_shows_each_frame_for_its_time_and_repeats_for_ever(kind: Kind) -> None:
    with Image.open(io.BytesIO(encode_animation(frames(), 120, kind))) as picture:
        assert (picture.format, picture.info["loop"]) == (kind.upper(), 0)
        for number in range(4):
            picture.seek(number)
            assert picture.info["duration"] == 120


def test_a_gif_shows_the_frames() -> None:
    pictures = frames()
    with Image.open(io.BytesIO(encode_animation(pictures, 100, "gif"))) as shown:
        for number, picture in enumerate(pictures):
            shown.seek(number)
            assert shown.convert("L").tobytes() == picture.tobytes()


def test_a_picture_that_stands_still_has_one_frame() -> None:
    (picture,) = pictures = frames(number=1)
    for data in (encode(picture, "png"), encode_animation(pictures, 100, "png")):
        assert survives(pictures, data)


@pytest.mark.parametrize("disposal", [0, 1, 2])
def test_files_that_store_only_what_changes_are_read_as_they_are_shown(disposal: int) -> None:
    pictures = [Image.new("RGBA", (9, 6), "white") for _ in range(4)]
    for number, picture in enumerate(pictures):
        picture.paste((number, number, number), (number, 1, number + 3, 4))
    latent = encode_frames(as_written_by_pillow(pictures, disposal=disposal), "L", NAME)
    assert [x.tobytes() for x in decode_frames(latent)] == [x.convert("L").tobytes() for x in pictures]


def test_a_picture_for_programs_that_show_no_animation_is_no_frame() -> None:
    pictures = frames()
    assert survives(pictures[1:], as_written_by_pillow(pictures, default_image=True))


def test_frames_are_of_the_mode_that_is_wanted_and_on_white() -> None:
    pictures = [Image.new("RGBA", (4, 4), (255, 0, 0, 255)) for _ in range(2)]
    for number, picture in enumerate(pictures):
        picture.paste((0, 0, 0, 0), (2 * number, 0, 2 * number + 2, 4))  # of the first the left half, then the right
    data = as_written_by_pillow(pictures, disposal=1)
    colour, grey = (encode_frames(data, mode, NAME) for mode in ("RGB", "L"))
    assert (colour.shape, grey.shape) == ((3, 2, 4, 4), (1, 2, 4, 4))
    for latent, red in ((colour, [1, -1, -1]), (grey, [76 / 127.5 - 1])):
        for shown in (latent[:, 0], latent[:, 1, :, ::-1]):
            assert (shown[:, :, :2] == 1).all()
            np.testing.assert_allclose(shown[:, 3, 3], red, atol=1e-6)


# What is refused, and how it is said.


def test_what_is_no_animation_is_named() -> None:
    for data in (b"", b"no picture", *(encode(frames()[0], kind) for kind in ("JPEG", "WEBP", "BMP", "TIFF", "GIF"))):
        assert refusal(data) == f"{NAME}: its picture is no readable PNG{ADVICE}"


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.99])
def test_an_animation_that_is_cut_off_is_named(part: float) -> None:
    data = encode_animation(frames(), 100, "png")
    assert refusal(data[: int(part * len(data))]).startswith(f"{NAME}: its picture is ")


def test_all_frames_together_are_held_to_the_limit_before_they_are_decoded() -> None:
    assert refusal(png_of_size(8193, 8192)).endswith(f"has 1 frames of 8193x8192 pixels, not 1 to 67108864{ADVICE}")
    assert refusal(png_of_size(0, 8192)).endswith(f"has 1 frames of 0x8192 pixels, not 1 to 67108864{ADVICE}")
    small = encode_animation(frames(number=5, height=1, width=1), 100, "png")
    large = with_sum(small[:16] + struct.pack(">2L", 4096, 4096) + small[24:])
    assert refusal(large).endswith(f"has 5 frames of 4096x4096 pixels, not 1 to 67108864{ADVICE}")


def with_sum(data: bytes) -> bytes:
    """A PNG whose head has the right checksum again."""
    return data[:29] + struct.pack(">L", zlib.crc32(data[12:29])) + data[33:]


def test_a_flipped_bit_of_a_png_is_found_in_every_frame() -> None:
    whole = encode_animation(frames(), 100, "png")
    start = whole.rindex(b"fdAT")
    data = whole[: start + 12] + bytes([whole[start + 12] ^ 1]) + whole[start + 13 :]
    assert refusal(data).startswith(f"{NAME}: its picture is broken (bad checksum of its b'fdAT'")


@pytest.mark.parametrize("number", [1, 3])
def test_a_png_that_has_fewer_frames_than_parts_or_more_is_read_or_named(number: int) -> None:
    whole = encode_animation(frames(number=2), 100, "png")
    start = whole.index(b"acTL")
    head = b"acTL" + struct.pack(">2L", number, 0)
    data = whole[:start] + head + struct.pack(">L", zlib.crc32(head)) + whole[start + 16 :]
    if number == 3:  # the third is not there
        assert encode_frames(data, "L", NAME).shape[1] == 2
    else:
        assert refusal(data).startswith(f"{NAME}: its picture is broken (")


@given(st.data())
@pytest.mark.filterwarnings("ignore:Invalid APNG:UserWarning")
def test_a_damaged_animation_is_named_or_read(data: st.DataObject) -> None:
    """Whatever is wrong with the bytes, the message says in which sample."""
    content = bytearray(encode_animation(frames(number=2), 100, "png"))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        encode_frames(bytes(content), "L", NAME)
    except ValueError:
        assert refusal(bytes(content)).startswith(f"{NAME}: its picture ")
