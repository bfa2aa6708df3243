from __future__ import annotations

import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from oneflow_dist.data.codec import cut_pieces, decode_pixels, packed_patch, to_latent, to_patches
from oneflow_dist.data.media import encode_file
from oneflow_dist.data.picture import ORIENTATION
from oneflow_dist.modality import ModalityConfig, on_axes
from tests.messages import Message, names
from tests.pieces import SOUND, VECTOR, VIDEO, VISION, modality

GREY = modality(shape=(6, 4), patch=(2, 2))
COLOUR = modality(channels=3, shape=(6, 4), patch=(2, 2))
both = pytest.mark.parametrize("image", [GREY, COLOUR], ids=["grey", "colour"])


def picture(image: ModalityConfig, seed: int = 0) -> Image.Image:
    shape = image.shape + ((3,) if image.channels == 3 else ())
    return Image.fromarray(np.random.default_rng(seed).integers(256, size=shape, dtype=np.uint8))


def png(image: Image.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind)
    return buffer.getvalue()


def refusal(data: bytes, image: ModalityConfig = GREY) -> str:
    with pytest.raises(ValueError) as error:
        encode_file(data, image, "sample a/b/c, image 0")
    return Message(error.value)


@both
def test_a_picture_survives_being_a_latent(image: ModalityConfig) -> None:
    original = picture(image)
    latent = encode_file(png(original), image, "x")
    assert latent.shape == (image.channels, *image.shape)
    assert decode_pixels(latent).tobytes() == original.tobytes()


def test_black_is_minus_one_and_white_is_one() -> None:
    for level, value in ((0, -1.0), (255, 1.0)):
        latent = encode_file(png(Image.new("L", (4, 6), level)), GREY, "x")
        assert latent.dtype == np.float32
        assert (latent == value).all()


def test_every_grey_level_survives() -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = modality(shape=(16, 16), patch=(2, 2))
    assert np.array_equal(np.asarray(decode_pixels(encode_file(png(Image.fromarray(levels)), image, "x"))), levels)


def test_rows_stay_rows_and_channels_come_first() -> None:
    latent = encode_file(png(picture(COLOUR)), COLOUR, "x")
    pixels = np.asarray(picture(COLOUR))
    assert latent[2, 5, 1] == pytest.approx(pixels[5, 1, 2] / 127.5 - 1.0)


def test_values_beyond_the_range_are_clipped() -> None:
    latent = np.array([[[-7.0, -1.0], [1.0, 7.0]]], dtype=np.float32)
    assert np.asarray(decode_pixels(latent)).tolist() == [[0, 0], [255, 255]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "1", "P"])
@both
def test_a_picture_of_another_mode_is_converted(image: ImageConfig, mode: str) -> None:
    opaque = ((0, 0, 0, 255),) if mode == "RGBA" else ()
    latent = encode_file(png(Image.new(mode, (4, 6), *opaque)), image, "x")
    assert latent.shape == (image.channels, *image.shape)
    assert (latent == -1.0).all()


@both
def test_pixels_are_of_the_upright_picture_on_white(image: ModalityConfig) -> None:
    transparent = Image.new("LA", (4, 6), (0, 0))
    assert (encode_file(png(transparent), image, "x") == 1.0).all()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    buffer = io.BytesIO()
    original = picture(image)
    original.transpose(Image.Transpose.ROTATE_90).save(buffer, format="PNG", exif=exif)
    assert np.array_equal(encode_file(buffer.getvalue(), image, "x"), encode_file(png(original), image, "x"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_three_formats_are_read(kind: str) -> None:
    latent = encode_file(png(Image.new("RGB", (4, 6), "white"), kind), COLOUR, "x")
    np.testing.assert_allclose(latent, 1.0, atol=0.02)


@pytest.mark.parametrize("size", [(2, 2), (6, 4), (4, 60)])
def test_a_picture_of_any_size_that_patches_fill_is_read(size: tuple[int, int]) -> None:
    assert encode_file(png(Image.new("L", size)), GREY, "x").shape == (1, size[1], size[0])


# Patches.

LATENTS = {  # channels, patches along each side, elements of a patch along each side
    "vector": (7, (), ()),
    "sound": (4, (5,), (3,)),
    "one element of sound": (1, (1,), (1,)),
    "one patch": (3, (1, 1), (2, 2)),
    "single elements": (2, (3, 4), (1, 1)),
    "wide": (16, (2, 6), (2, 2)),
    "high": (1, (3, 1), (3, 3)),
    "patches that are no squares": (2, (3, 2), (1, 4)),
    "video": (3, (4, 2, 3), (2, 1, 3)),
}


@pytest.mark.parametrize(("channels", "grid", "patch"), LATENTS.values(), ids=LATENTS)
def test_a_latent_survives_being_cut(channels: int, grid: tuple[int, ...], patch: tuple[int, ...]) -> None:
    shape = tuple(count * size for count, size in zip(grid, patch, strict=True))
    one = modality(channels=channels, shape=shape, patch=patch, codec="latents")
    latent = np.random.default_rng(0).standard_normal((channels, *shape), dtype=np.float32)
    patches = to_patches(latent, on_axes(patch))
    assert patches.shape == (one.num_rows, one.patch_elements)
    assert one.grid == on_axes(grid)
    np.testing.assert_array_equal(to_latent(patches, one.grid, one), latent)


def test_patches_go_row_by_row_and_list_elements_by_row_column_and_channel() -> None:
    channel, row, column = np.meshgrid(np.arange(2), np.arange(4), np.arange(6), indexing="ij")
    patches = to_patches((100 * channel + 10 * row + column).astype(np.float32), (1, 2, 2))
    assert patches[0].tolist() == [0, 100, 1, 101, 10, 110, 11, 111]
    assert patches[:, 0].tolist() == [0, 2, 4, 20, 22, 24]  # first row and column of each patch


def test_patches_go_frame_by_frame_and_list_elements_by_frame_row_column_and_channel() -> None:
    """A frame of single patches is the picture: what knows pictures knows the frames of a video."""
    rng = np.random.default_rng(0)
    video = rng.standard_normal((3, 4, 6, 2), dtype=np.float32)
    frames = [to_patches(frame, (1, 3, 2)) for frame in video.swapaxes(0, 1)]
    np.testing.assert_array_equal(to_patches(video, (1, 3, 2)), np.concatenate(frames))
    pairs = [np.concatenate([frames[t], frames[t + 1]], axis=1) for t in (0, 2)]
    np.testing.assert_array_equal(to_patches(video, (2, 3, 2)), np.concatenate(pairs))


@pytest.mark.parametrize(
    ("one", "sides", "grids"),
    [
        (COLOUR, [(4, 6), (2, 2), (8, 2)], [[1, 2, 3], [1, 1, 1], [1, 4, 1]]),
        (SOUND, [(4,), (2,), (10,)], [[2, 1, 1], [1, 1, 1], [5, 1, 1]]),
        (VIDEO, [(3, 4, 2), (1, 2, 2), (2, 2, 6)], [[3, 2, 1], [1, 1, 1], [2, 1, 3]]),
        (VECTOR, [(), (), ()], [[1, 1, 1]] * 3),
    ],
    ids=lambda value: value.token if isinstance(value, ModalityConfig) else "",
)
def test_pieces_of_any_shapes_are_cut_end_to_end(
    one: ModalityConfig, sides: list[tuple[int, ...]], grids: list[list[int]]
) -> None:
    rng = np.random.default_rng(0)
    latents = [rng.standard_normal((one.channels, *shape), dtype=np.float32) for shape in sides]
    pieces = cut_pieces(latents, [1, 2, 9], one)
    assert pieces.token.tolist() == [1, 2, 9]
    assert pieces.time.tolist() == pieces.stride.tolist() == [1.0, 1.0, 1.0]
    assert pieces.grid.tolist() == grids
    patches = [to_patches(latent, on_axes(one.patch)) for latent in latents]
    np.testing.assert_array_equal(pieces.patches, np.concatenate(patches))
    assert not pieces.is_given_only
    assert cut_pieces([], [], one).patches.shape == (0, one.patch_elements)


def test_what_pictures_look_like_is_given_only() -> None:
    assert cut_pieces([np.zeros((6, 4, 4), np.float32)], [1], VISION).is_given_only


def test_a_larger_piece_is_squeezed_into_so_many_places_where_it_is_asked() -> None:
    """The longest side of its grid then takes so many positions; a smaller piece stays as it is."""
    usual = modality(shape=(8, 8), patch=(2, 2), squeezed_to=4)
    latents = [np.zeros((1, *sides), np.float32) for sides in ((4, 8), (2, 2), (32, 4), (4, 12), (8, 8))]
    assert cut_pieces(latents, range(5), usual).stride.tolist() == [1.0, 1.0, 4 / 16, 4 / 6, 1.0]
    assert cut_pieces([], [], usual).stride.shape == (0,)
    plain = modality(shape=(8, 8), patch=(2, 2))
    assert cut_pieces(latents, range(5), plain).stride.tolist() == [1.0] * 5


def test_a_pack_holds_the_picture_where_an_encoder_has_yet_to_look_at_it() -> None:
    """Of a map of 7 x 7 features of a picture of 224 x 224 pixels, each is that of 32 x 32 of them."""
    live = modality(
        "vision", channels=1280, shape=(7, 7), patch=(1, 1), codec="efficientnet-lite0", understanding="live"
    )
    assert packed_patch(live) == ((1, 32, 32), 3 * 32 * 32)
    assert packed_patch(replace(live, understanding="features")) == ((1, 1, 1), 1280)
    assert packed_patch(SOUND) == ((2, 1, 1), SOUND.patch_elements)
    picture = np.random.default_rng(0).random((3, 224, 224), np.float32)
    pieces = cut_pieces([picture], [1], live)
    assert np.array_equal(to_latent(pieces.patches, pieces.grid[0].tolist(), live), picture)
    assert (pieces.grid.tolist(), pieces.patches.shape) == ([[1, 7, 7]], (49, 3072))


# What is refused, and how it is said.


def test_latents_of_other_channels_are_no_pixels() -> None:
    image = modality(channels=16, shape=(6, 4), patch=(2, 2))
    message = "sample a/b/c, image 0: channels is 16, not 1 (grey) or 3 (colour), the channels of pixels"
    assert refusal(png(picture(GREY)), image) == message


def test_a_file_where_only_latents_are_read_is_named_with_the_tool_that_encodes_it() -> None:
    message = refusal(png(picture(GREY)), modality(shape=(6, 4), patch=(2, 2), codec="data/sd3-vae"))
    assert names(message, "sample a/b/c, image 0", "'data/sd3-vae'", "oneflow precompute", '"pixels"')


@pytest.mark.parametrize("size", [(5, 4), (4, 7), (1, 1)])
def test_a_picture_that_patches_do_not_fill_is_named_with_its_size(size: tuple[int, int]) -> None:
    named = ("sample a/b/c, image 0", [size[1], size[0]], "[2, 2]", "oneflow precompute --multiple-of")
    assert names(refusal(png(Image.new("L", size))), *named, "patch")


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
        modality(channels=3, shape=(64, 64), patch=(2, 2)),
    )
    assert message.startswith("sample a/b/c, image 0: its picture is ")


@given(st.data(), st.sampled_from(["PNG", "JPEG", "WEBP"]))
def test_a_damaged_picture_is_named_or_read(data: st.DataObject, kind: str) -> None:
    """Whatever is wrong with the bytes, the message says in which sample."""
    content = bytearray(png(picture(COLOUR), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        encode_file(bytes(content), COLOUR, "sample a/b/c, image 0")
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
