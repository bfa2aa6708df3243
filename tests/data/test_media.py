from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.data.media import check_file, decode_file, encode_file, encode_view
from oneflow_dist.data.moving import encode_animation
from oneflow_dist.data.sound import encode_wave
from oneflow_dist.modality import ModalityConfig
from oneflow_dist.views import LITE0
from tests.messages import names
from tests.pieces import SOUND, VECTOR, VIDEO, modality
from tests.tars import png

NAME = "sample a/b/c, 0"
GREY = modality()


def wav(num_samples: int = 40, rate: int = 8000) -> bytes:
    return encode_wave(0.3 * np.sin(np.arange(num_samples)), rate)


def apng(num_frames: int = 2, side: int = 4) -> bytes:
    shape = (num_frames, side, side)
    levels = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    return encode_animation([Image.fromarray(frame) for frame in levels], 100, "png")


def refusal(data: bytes, one: ModalityConfig) -> str:
    with pytest.raises(ValueError) as error:
        encode_file(data, one, NAME)
    return str(error.value)


@pytest.mark.parametrize(
    ("one", "data", "shape"),
    [(GREY, png(9, (12, 4)), (1, 4, 12)), (SOUND, wav(), (4, 10)), (VIDEO, apng(3, 6), (1, 3, 6, 6))],
    ids=["picture", "sound", "video"],
)
def test_a_file_becomes_the_latent_of_its_modality(one: ModalityConfig, data: bytes, shape: tuple[int, ...]) -> None:
    latent = encode_file(data, one, NAME)
    assert (latent.shape, latent.dtype) == (shape, np.float32)
    assert latent.min() >= -1.0


def test_colours_are_three_channels_of_every_frame() -> None:
    colour = modality(channels=3, shape=(2, 4, 4), patch=(1, 2, 2))
    assert encode_file(apng(), colour, NAME).shape == (3, 2, 4, 4)


@pytest.mark.parametrize(
    ("one", "data", "sides"),
    [(GREY, png(9, (12, 6)), [6, 12]), (SOUND, wav(28), [7]), (VIDEO, apng(2, 5), [2, 5, 5])],
    ids=["picture", "sound", "video"],
)
def test_what_patches_do_not_fill_is_named_with_its_sides(one: ModalityConfig, data: bytes, sides: list[int]) -> None:
    assert names(refusal(data, one), NAME, sides, list(one.patch))


@pytest.mark.parametrize(
    ("one", "data"),
    [(GREY, wav()), (SOUND, png(9)), (SOUND, apng()), (VIDEO, wav()), (VIDEO, b""), (SOUND, b"")],
)
def test_a_file_of_another_kind_is_named(one: ModalityConfig, data: bytes) -> None:
    assert refusal(data, one).startswith(f"{NAME}: its ")


def test_a_sound_of_another_rate_is_named_with_both() -> None:
    assert names(refusal(wav(rate=16000), SOUND), NAME, 16000, 8000)


@pytest.mark.parametrize("one", [VECTOR, modality(codec="latents"), modality(codec="data/sd3-vae")])
def test_a_file_that_the_codec_does_not_read_is_named_with_those_that_read(one: ModalityConfig) -> None:
    assert names(refusal(png(9), one), NAME, repr(one.codec), '"pixels"', '"spectrogram@8000"')


@pytest.mark.parametrize(("kind", "data"), [("wav", wav()), ("apng", apng())])
def test_a_check_needs_neither_rate_nor_size_and_finds_what_is_broken(kind: str, data: bytes) -> None:
    check_file(data, kind, NAME)
    for broken in (data[:-9], data[:50], b"", png(3)[:20]):
        with pytest.raises(ValueError, match=NAME):
            check_file(broken, kind, NAME)


def test_what_an_encoder_is_shown_is_the_whole_picture_at_its_one_size() -> None:
    view = encode_view(png(255, (30, 10)), LITE0, NAME)
    assert view.shape == (3, LITE0.height, LITE0.width)
    assert (view == 1.0).all()


def test_what_is_made_becomes_a_file_to_look_at_or_to_listen_to() -> None:
    latent = encode_file(apng(), VIDEO, NAME)
    with Image.open(io.BytesIO(decode_file(latent, VIDEO))) as picture:
        assert (picture.format, picture.n_frames, picture.size) == ("GIF", 2, (4, 4))
    heard = decode_file(encode_file(wav(), SOUND, NAME), SOUND)
    assert encode_file(heard, SOUND, NAME).shape == (4, 10)
    vector = np.arange(5, dtype=np.float32)
    np.testing.assert_array_equal(np.load(io.BytesIO(decode_file(vector, VECTOR))), vector)
