from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from oneflow_dist.config import ImageConfig
from oneflow_dist.data.codec import cut_images, decode_pixels, encode_pixels, to_latent, to_patches
from oneflow_dist.data.picture import ORIENTATION
from tests.messages import Message

GREY = ImageConfig(channels=1, height=6, width=4, patch_size=2, time_conditioning="added")
COLOUR = ImageConfig(channels=3, height=6, width=4, patch_size=2, time_conditioning="added")
both = pytest.mark.parametrize("image", [GREY, COLOUR], ids=["grey", "colour"])


def picture(image: ImageConfig, seed: int = 0) -> Image.Image:
    shape = (image.height, image.width) + ((3,) if image.channels == 3 else ())
    return Image.fromarray(np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8))


def png(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def refusal(data: bytes, image: ImageConfig = GREY) -> str:
    with pytest.raises(ValueError) as error:
        encode_pixels(data, image, "sample a/b/c, image 0")
    return Message(error.value)


@both
def test_a_picture_survives_being_a_latent(image: ImageConfig) -> None:
    original = picture(image)
    latent = encode_pixels(png(original), image, "x")
    assert latent.shape == image.shape
    assert decode_pixels(latent).tobytes() == original.tobytes()


def test_black_is_minus_one_and_white_is_one() -> None:
    for level, value in ((0, -1.0), (255, 1.0)):
        latent = encode_pixels(png(Image.new("L", (4, 6), level)), GREY, "x")
        assert latent.dtype == np.float32
        assert (latent == value).all()


def test_every_grey_level_survives() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = ImageConfig(channels=1, height=16, width=16, patch_size=2, time_conditioning="added")
    assert np.array_equal(np.asarray(decode_pixels(encode_pixels(png(Image.fromarray(levels)), image, "x"))), levels)


def test_rows_stay_rows_and_channels_come_first() -> None:
    latent = encode_pixels(png(picture(COLOUR)), COLOUR, "x")
    pixels = np.asarray(picture(COLOUR))
    assert latent[2, 5, 1] == pytest.approx(pixels[5, 1, 2] / 127.5 - 1.0)


def test_values_beyond_the_range_are_clipped() -> None:
    latent = np.array([[[-7.0, -1.0], [1.0, 7.0]]], dtype=np.float32)
    assert np.asarray(decode_pixels(latent)).tolist() == [[0, 0], [255, 255]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "1", "P"])
@both
def test_a_picture_of_another_mode_is_converted(image: ImageConfig, mode: str) -> None:
    opaque = ((0, 0, 0, 255),) if mode == "RGBA" else ()
    latent = encode_pixels(png(Image.new(mode, (4, 6), *opaque)), image, "x")
    assert latent.shape == image.shape
    assert (latent == -1.0).all()


@both
def test_pixels_are_of_the_upright_picture_on_white(image: ImageConfig) -> None:
    transparent = Image.new("LA", (4, 6), (0, 0))
    assert (encode_pixels(png(transparent), image, "x") == 1.0).all()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    buffer = io.BytesIO()
    original = picture(image)
    original.transpose(Image.Transpose.ROTATE_90).save(buffer, format="PNG", exif=exif)
    assert np.array_equal(encode_pixels(buffer.getvalue(), image, "x"), encode_pixels(png(original), image, "x"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_three_formats_are_read(kind: str) -> None:
    latent = encode_pixels(png(Image.new("RGB", (4, 6), "white"), kind), COLOUR, "x")
    np.testing.assert_allclose(latent, 1.0, atol=0.02)


@pytest.mark.parametrize("size", [(2, 2), (6, 4), (4, 60)])
def test_a_picture_of_any_size_that_patches_fill_is_read(size: tuple[int, int]) -> None:
    assert encode_pixels(png(Image.new("L", size)), GREY, "x").shape == (1, size[1], size[0])


# Patches.

LATENTS = {  # channels, rows and columns of patches, patch size
    "one patch": (3, 1, 1, 2),
    "single elements": (2, 3, 4, 1),
    "wide": (16, 2, 6, 2),
    "high": (1, 3, 1, 3),
}


@pytest.mark.parametrize(("channels", "rows", "columns", "size"), LATENTS.values(), ids=LATENTS)
def test_a_latent_survives_being_cut(channels: int, rows: int, columns: int, size: int) -> None:
    image = ImageConfig(channels=channels, height=size, width=size, patch_size=size, time_conditioning="added")
    latent = np.random.default_rng(0).standard_normal((channels, rows * size, columns * size), dtype=np.float32)
    patches = to_patches(latent, size)
    assert patches.shape == (rows * columns, image.patch_elements)
    np.testing.assert_array_equal(to_latent(patches, (rows, columns), image), latent)


def test_patches_go_row_by_row_and_list_elements_by_row_column_and_channel() -> None:
    channel, row, column = np.meshgrid(np.arange(2), np.arange(4), np.arange(6), indexing="ij")
    patches = to_patches((100 * channel + 10 * row + column).astype(np.float32), 2)
    assert patches[0].tolist() == [0, 100, 1, 101, 10, 110, 11, 111]
    assert patches[:, 0].tolist() == [0, 2, 4, 20, 22, 24]  # first row and column of each patch


def test_images_of_any_shapes_are_cut_end_to_end() -> None:
    rng = np.random.default_rng(0)
    latents = [rng.standard_normal((3, *sides), dtype=np.float32) for sides in ((4, 6), (2, 2), (8, 2))]
    images = cut_images(latents, [1, 2, 9], COLOUR)
    assert images.token.tolist() == [1, 2, 9]
    assert images.time.tolist() == [1.0, 1.0, 1.0]
    assert images.grid.tolist() == [[2, 3], [1, 1], [4, 1]]
    np.testing.assert_array_equal(images.patches, np.concatenate([to_patches(latent, 2) for latent in latents]))
    assert cut_images([], [], COLOUR).patches.shape == (0, 12)


# What is refused, and how it is said.


def test_latents_of_other_channels_are_no_pixels() -> None:
    image = ImageConfig(channels=16, height=6, width=4, patch_size=2, time_conditioning="added")
    message = "image.channels: 16 is not 1 (grey) or 3 (colour), the channels of pixels"
    assert refusal(png(picture(GREY)), image) == message


@pytest.mark.parametrize("size", [(5, 4), (4, 7), (1, 1)])
def test_a_picture_that_patches_do_not_fill_is_named_with_its_size(size: tuple[int, int]) -> None:
    assert refusal(png(Image.new("L", size))) == (
        f"sample a/b/c, image 0: {size[0]}x{size[1]} pixels, but image.patch_size (2) must divide width and height; "
        "crop or resize the images"
    )


def test_what_is_no_picture_is_named() -> None:
    message = refusal(b"this is no picture")
    assert message.startswith("sample a/b/c, image 0: its picture is no readable PNG, JPEG or WebP; ")
    assert str(message).endswith("; write it again or remove the sample")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_picture_is_named(kind: str, part: float) -> None:
    data = png(picture(GREY).convert("RGB").resize((64, 64)), kind)
    message = refusal(
        data[: int(part * len(data))],
        ImageConfig(channels=3, height=64, width=64, patch_size=2, time_conditioning="added"),
    )
    assert message.startswith("sample a/b/c, image 0: its picture is ")


@given(st.data(), st.sampled_from(["PNG", "JPEG", "WEBP"]))
def test_a_damaged_picture_is_named_or_read(data: st.DataObject, kind: str) -> None:
    """Whatever is wrong with the bytes, the message says in which sample."""
    content = bytearray(png(picture(COLOUR), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        encode_pixels(bytes(content), COLOUR, "sample a/b/c, image 0")
    except ValueError:
        assert refusal(bytes(content), COLOUR).startswith("sample a/b/c, image 0: ")


def header_of(width: int, height: int) -> bytes:
    """A PNG that claims a size, without the pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0"))


@pytest.mark.parametrize("width", [8193, 12_000, 100_000])
def test_a_picture_that_would_fill_the_memory_is_refused_before_it_is_decoded(width: int) -> None:
    """One above our limit, one at which Pillow warns, one that it refuses itself."""
    assert refusal(header_of(width, 8192)) == (
        f"sample a/b/c, image 0: its picture has {width}x8192 pixels, more than 67108864; "
        "write it again or remove the sample"
    )
