from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.data.picture import ORIENTATION, TURNS, decode_picture, read_picture
from tests.messages import Message
from tests.precompute.making import encode, picture, png, png_of_size


def read(data: bytes, mode: str = "RGB") -> Image.Image:
    return decode_picture(data, mode)[0]


def refusal(data: bytes) -> str:
    with pytest.raises(ValueError) as error:
        read(data)
    return str(error.value)


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_picture_stands_upright_as_its_exif_says(turn: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[ORIENTATION] = turn
    data = encode(picture(1, 8, 24), exif=exif)
    expected = ImageOps.exif_transpose(picture(1, 8, 24)) if turn == 1 else picture(1, 8, 24).transpose(TURNS[turn])
    image, width, height = decode_picture(data, "RGB")
    assert (width, height) == image.size == expected.size
    assert np.array_equal(np.asarray(image), np.asarray(expected))


def test_what_is_transparent_is_white() -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((1, 1), (0, 0, 255, 255))
    pixels = np.asarray(read(encode(image)))
    assert pixels[0, 0].tolist() == [255, 255, 255]
    assert pixels[1, 1].tolist() == [0, 0, 255]
    palette = encode(picture(0).convert("P"), transparency=bytes(256))
    for mode in ("L", "RGB"):
        assert np.asarray(read(palette, mode)).min() == 255
    faint = encode(Image.new("LA", (4, 4), (0, 51)))
    assert (np.asarray(read(faint, "L")) == 204).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK"])
def test_every_mode_becomes_the_one_that_is_wanted(mode: str) -> None:
    data = encode(picture(0).convert(mode), "JPEG" if mode == "CMYK" else "PNG")
    for wanted in ("L", "RGB"):
        image = read(data, wanted)
        assert (image.mode, image.size) == (wanted, (16, 16))


def test_grey_levels_are_their_own() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(np.asarray(read(encode(Image.fromarray(levels)), "L")), levels)
    opaque = Image.fromarray(levels).convert("LA")
    assert np.array_equal(np.asarray(read(encode(opaque), "L")), levels)


def test_sixteen_bits_keep_the_upper_eight() -> None:
    image = Image.fromarray(np.array([[0, 256, 0x80FF, 65535]], dtype=np.uint16))
    assert np.asarray(read(encode(image)))[0, :, 0].tolist() == [0, 1, 0x80, 255]
    assert np.asarray(read(encode(image), "L"))[0].tolist() == [0, 1, 0x80, 255]


def test_a_jpeg_that_will_be_small_is_decoded_small() -> None:
    data = encode(picture(0, 256, 512), "JPEG")
    image, width, height = decode_picture(data, "RGB", lambda height, width: 0.25)
    assert (image.size, width, height) == ((128, 64), 512, 256)


def test_a_picture_that_is_too_large_is_refused_by_its_head() -> None:
    assert refusal(png_of_size(40_000, 40_000)) == "its picture has 40000x40000 pixels, more than 67108864"


def test_a_picture_without_pixels_is_refused() -> None:
    assert refusal(png_of_size(0, 4)).startswith("its picture ")
    assert refusal(png_of_size(4, 0)).startswith("its picture ")


def test_what_is_no_whole_picture_is_refused() -> None:
    whole = png(0, 64, 64)
    assert refusal(b"") == "its picture is empty (0 bytes)"
    assert refusal(b"not a picture") == "its picture is no readable PNG, JPEG or WebP"
    assert refusal(whole[:-200]).startswith("its picture is broken (")
    assert refusal(encode(picture(0, 64, 64), "JPEG")[:-700]).startswith(
        "its picture is broken (image file is truncated"
    )
    for kind in ("BMP", "GIF", "TIFF", "EPS"):  # Pillow reads the last by starting ghostscript
        assert refusal(encode(picture(0), kind)) == "its picture is no readable PNG, JPEG or WebP"


def test_a_named_picture_is_refused_with_its_name() -> None:
    with pytest.raises(ValueError) as error:
        read_picture(b"", "L", "sample a/b/c")
    assert Message(error.value) == ("sample a/b/c: its picture is empty (0 bytes); write it again or remove the sample")


def test_a_flipped_bit_in_the_pixels_of_a_png_is_found() -> None:
    whole = bytearray(png(0, 64, 64))
    at = whole.index(b"IDAT") + 200
    whole[at] ^= 1
    assert refusal(bytes(whole)).startswith("its picture is broken (bad checksum of its b'IDAT'")
    end = whole.index(b"IEND") - 6
    fresh = bytearray(png(0, 64, 64))
    fresh[end] ^= 1  # the checksum itself
    assert refusal(bytes(fresh)).startswith("its picture is broken (bad checksum of its b'IDAT'")
