from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneflow_dist.containers import PiecePart
from oneflow_dist.data.latents import (
    CHECK,
    decode_array,
    decode_latent,
    draw_latent,
    encode_array,
    stack_posterior,
    to_float32,
)
from oneflow_dist.flow.noising import gaussian
from oneflow_dist.modality import ModalityConfig
from tests.messages import Message, names
from tests.pieces import SOUND, VECTOR, VIDEO, modality
from tests.tars import npy

IMAGE = modality(channels=4, patch=(2, 2), codec="data/sd3-vae")
AUTOENCODER = {"scaling_factor": 1.5, "shift_factor": 0.25}
dtypes = pytest.mark.parametrize("dtype", ["<f2", "<f4"])


def posterior(height: int = 4, width: int = 6, seed: int = 0) -> np.ndarray:
    """A mean and a positive standard deviation, exact in half precision."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-64, 65, size=(2, 4, height, width)).astype(np.float32) / 32
    values[1] = np.abs(values[1]) + 0.125
    return values


def decode(data: bytes, flipped: bytes | None = None) -> PiecePart:
    return decode_latent(data, flipped, AUTOENCODER, IMAGE, "image", "sample a/b/c")


# Arrays.


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<i4"])
@given(shape=st.lists(st.integers(1, 4), min_size=1, max_size=4), seed=st.integers(0, 9))
def test_an_array_is_read_back(dtype: str, shape: list[int], seed: int) -> None:
    array = (np.random.default_rng(seed).standard_normal(shape) * 100).astype(dtype)
    back = decode_array(encode_array(array), "x")
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()


def test_an_array_is_an_npy_file_as_numpy_writes_and_reads_them(tmp_path: Path) -> None:
    array = np.arange(6, dtype="<f4").reshape(2, 3)
    np.save(tmp_path / "a.npy", array)
    assert encode_array(array) == (tmp_path / "a.npy").read_bytes()
    assert np.array_equal(decode_array((tmp_path / "a.npy").read_bytes(), "x"), array)


def test_an_array_in_another_order_of_memory_is_written_in_that_of_c() -> None:
    array = np.arange(6, dtype="<f4").reshape(2, 3).T
    assert np.array_equal(decode_array(encode_array(array), "x"), array)


def test_a_decoded_array_cannot_be_written_to() -> None:
    """It is the file's own memory."""
    assert not decode_array(npy([1.0]), "x").flags.writeable


# Posteriors.


@dtypes
def test_a_posterior_stays_as_it_is_stored(dtype: str) -> None:
    values = posterior()
    part = decode(npy(values, dtype))
    assert part.posterior.dtype == np.dtype(dtype)
    assert np.array_equal(part.posterior, values)
    assert part.mirrored.shape == (0, 4, 4, 6)
    assert (part.shift, part.scale) == (0.25, 1.5)


@pytest.mark.parametrize(("height", "width"), [(2, 2), (4, 10), (10, 4)])
def test_a_latent_may_have_any_shape_that_patches_divide(height: int, width: int) -> None:
    assert decode(npy(posterior(height, width))).posterior.shape == (2, 4, height, width)


@pytest.mark.parametrize(
    ("one", "sides"), [(SOUND, (8,)), (VIDEO, (3, 6, 2)), (VECTOR, ())], ids=["sound", "video", "vector"]
)
@pytest.mark.parametrize("num_stored", [1, 2], ids=["values", "mean and deviation"])
def test_values_and_posteriors_may_have_any_dimensions(
    one: ModalityConfig, sides: tuple[int, ...], num_stored: int
) -> None:
    """Values as numpy writes them, of whatever the modality is, are drawn as they are; a posterior has two of them."""
    stored = np.random.default_rng(0).random((num_stored, one.channels, *sides), dtype=np.float32)
    files = [npy(values[0] if num_stored == 1 else values) for values in (stored, -stored)]
    part = decode_latent(files[0], None, None, one, "x", "sample a/b/c")
    assert (part.modality, part.shift, part.scale) == ("x", 0.0, 1.0)
    np.testing.assert_array_equal(part.posterior, stored)
    drawn = draw_latent(part, np.random.default_rng(7))
    np.testing.assert_array_equal(decode_latent(*files, None, one, "x", "sample a/b/c").mirrored, -stored)
    noise = gaussian(np.random.default_rng(7), stored[0].shape)
    expected = stored[0] if num_stored == 1 else stored[0] + stored[1] * noise
    np.testing.assert_allclose(drawn, expected, rtol=0.0, atol=4e-6)


def test_the_mirrored_twin_is_decoded_like_the_image() -> None:
    one, other = posterior(seed=1), posterior(seed=2)
    part = decode(npy(one), npy(other))
    assert np.array_equal(part.posterior, one)
    assert np.array_equal(part.mirrored, other)


@dtypes
def test_a_posterior_is_stored_as_it_is_stacked(dtype: str) -> None:
    mean, std = posterior()
    stacked = stack_posterior(mean, std, dtype)
    assert stacked.dtype == np.dtype(dtype)
    assert np.array_equal(stacked[0], mean)
    assert np.array_equal(stacked[1], std)


# Draws.


@dtypes
@pytest.mark.parametrize(("height", "width"), [(4, 6), (2, 2)])
def test_a_draw_is_mean_plus_noise_shifted_and_scaled(dtype: str, height: int, width: int) -> None:
    """In closed form: (mean + std * noise - shift) * scale."""
    values = posterior(height, width)
    drawn = draw_latent(decode(npy(values, dtype)), np.random.default_rng(7))
    noise = gaussian(np.random.default_rng(7), (4, height, width)).astype(np.float64)
    mean, std = values.astype(np.float64)
    assert drawn.dtype == np.float32
    np.testing.assert_allclose(drawn, (mean + std * noise - 0.25) * 1.5, rtol=0.0, atol=4e-6)


def test_exact_values_are_drawn_as_they_are() -> None:
    """Pixels: nothing is random, and they have no scale."""
    pixels = posterior()[:1]
    rng = np.random.default_rng(0)
    state = rng.bit_generator.state
    part = PiecePart(modality="image", posterior=pixels, mirrored=pixels[:0])
    assert np.array_equal(draw_latent(part, rng), pixels[0])
    assert rng.bit_generator.state == state


@dtypes
def test_half_of_the_draws_are_of_the_mirrored_twin(dtype: str) -> None:
    values = posterior()
    values[1] = 0.0
    part = decode(npy(values, dtype), npy(-values, dtype))
    rng = np.random.default_rng(0)
    drawn = [draw_latent(part, rng) for _ in range(1_000)]
    plain, mirrored = (values[0] - 0.25) * 1.5, (-values[0] - 0.25) * 1.5
    is_plain = np.array([np.array_equal(latent, plain) for latent in drawn])
    assert all(np.array_equal(latent, mirrored) for latent, plain in zip(drawn, is_plain, strict=True) if not plain)
    assert is_plain.mean() == pytest.approx(0.5, abs=4 * 0.5 / 1_000**0.5)
    assert abs(np.corrcoef(is_plain[:-1], is_plain[1:])[0, 1]) < 4 / 1_000**0.5


@dtypes
def test_a_draw_of_the_twin_has_noise_of_its_own_deviation(dtype: str) -> None:
    """The coin comes first: noise follows it in the generator's stream."""
    one, other = posterior(seed=1), posterior(seed=2)
    part = decode(npy(one, dtype), npy(other, dtype))
    shown = set()
    for seed in range(10):
        rng, again = np.random.default_rng(seed), np.random.default_rng(seed)
        is_mirrored = again.random() < 0.5
        mean, std = (other if is_mirrored else one).astype(np.float64)
        expected = (mean + std * gaussian(again, mean.shape) - 0.25) * 1.5
        np.testing.assert_allclose(draw_latent(part, rng), expected, rtol=0.0, atol=4e-6)
        shown.add(is_mirrored)
    assert shown == {True, False}


def test_half_precision_is_within_its_rounding_of_single() -> None:
    values = posterior() + np.float32(0.001)
    half, single = (draw_latent(decode(npy(values, dtype)), np.random.default_rng(0)) for dtype in ("<f2", "<f4"))
    noise = gaussian(np.random.default_rng(0), values[0].shape)
    bound = 1.5 * (np.abs(values[0]) + np.abs(noise) * values[1]) * 2.0**-11 + 1e-5
    assert (np.abs(half - single) <= bound).all()
    assert not np.array_equal(half, single)


@dtypes
def test_a_draw_leaves_the_file_as_it_is(dtype: str) -> None:
    data, flipped = npy(posterior(seed=1), dtype), npy(posterior(seed=2), dtype)
    part, before = decode(data, flipped), (bytes(bytearray(data)), bytes(bytearray(flipped)))
    assert not part.posterior.flags.writeable
    for seed in range(6):
        draw_latent(part, np.random.default_rng(seed))[:] = 9.0
    assert (data, flipped) == before


def test_every_number_of_half_precision_becomes_the_same_in_single() -> None:
    half = np.arange(2**16, dtype=np.uint16).view(np.float16)
    single = to_float32(half)
    assert single.dtype == np.float32
    assert np.array_equal(single, half.astype(np.float32), equal_nan=True)
    assert np.array_equal(to_float32(half.reshape(256, 256).T), single.reshape(256, 256).T, equal_nan=True)


@dtypes
def test_values_in_single_precision_are_a_copy(dtype: str) -> None:
    values = posterior().astype(dtype)
    to_float32(values)[:] = 9.0
    assert np.array_equal(values, posterior())


# What is refused, and how it is said.


def refusal(data: bytes, flipped: bytes | None = None) -> str:
    with pytest.raises(ValueError) as error:
        decode(data, flipped)
    return Message(error.value)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 4, 4), (1, 4, 4, 4), (3, 4, 4, 4), (4, 4), (2, 4, 4, 4, 1), (1,)])
def test_another_number_of_channels_or_dimensions_is_named(shape: tuple[int, ...]) -> None:
    named = ("sample a/b/c", list(shape), "modality.image.channels", 4, "height", "width", "modality.image")
    assert names(refusal(npy(np.zeros(shape))), *named)


@pytest.mark.parametrize(("height", "width"), [(3, 4), (4, 5), (0, 4), (4, 0)])
def test_a_shape_that_patches_do_not_divide_is_named(height: int, width: int) -> None:
    named = ("sample a/b/c", [height, width], [2, 2], "oneflow precompute --multiple-of", "patch")
    assert names(refusal(npy(posterior(height, width))), *named)


@pytest.mark.parametrize("shape", [(1,), (0,), (1, 4, 4, 6), (2, 4, 6, 4), (2, 3, 4, 6)])
def test_a_twin_of_another_shape_is_named(shape: tuple[int, ...]) -> None:
    assert refusal(npy(posterior()), npy(np.zeros(shape))) == (
        f"sample a/b/c: a mirrored latent of shape {list(shape)}, not [2, 4, 4, 6] as the latent; {CHECK}"
    )


def test_a_broken_twin_is_named() -> None:
    assert refusal(npy(posterior()), b"broken").startswith("sample a/b/c: broken .npy (")


def test_a_latent_of_whole_numbers_is_named() -> None:
    message = f"sample a/b/c: a latent of whole numbers, not of float16 or float32; {CHECK}"
    assert refusal(npy(posterior(), "<i4")) == message
    assert refusal(npy(posterior()), npy(posterior(), "<i4")) == message


@pytest.mark.parametrize("make", [lambda: b"", lambda: b"\x89PNG....", lambda: b"\x93NUMPY", lambda: b"x" * 5000])
def test_what_is_no_npy_file_is_named(make: object) -> None:
    message = refusal(make())  # type: ignore[operator]
    assert message.startswith("sample a/b/c: broken .npy (")
    assert message.endswith(f"); {CHECK}")


def test_an_npy_file_cut_off_anywhere_or_too_long_is_named() -> None:
    data = npy(posterior(2, 2))
    for size in range(len(data)):
        assert refusal(data[:size]).startswith("sample a/b/c: "), size
    assert refusal(data + b"\0").startswith("sample a/b/c: broken .npy (")


class Bomb:
    """Leaves a mark when it is unpickled."""

    exploded = False

    def __reduce__(self) -> tuple[object, tuple[()]]:
        return explode, ()


def explode() -> None:
    Bomb.exploded = True


def test_objects_are_refused_and_never_unpickled() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Bomb()], dtype=object), allow_pickle=True)
    for data in (buffer.getvalue(), pickle.dumps(Bomb())):
        assert refusal(data).startswith("sample a/b/c: broken .npy (")
    assert not Bomb.exploded
    np.load(io.BytesIO(buffer.getvalue()), allow_pickle=True)
    assert Bomb.exploded, "the file would have done it"


@pytest.mark.parametrize("dtype", [">f4", "<f8", "|u1", "<i8", "<U3", "<c8", "|b1"])
def test_other_kinds_of_numbers_are_named(dtype: str) -> None:
    message = refusal(encode_array(np.zeros((2, 4, 2, 2)).astype(dtype)))
    assert "values, not <f2, <f4, <i4 in C order" in message


def test_the_order_of_fortran_is_named() -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.asfortranarray(posterior()))
    assert "in C order" in refusal(buffer.getvalue())


def test_another_version_of_the_format_is_named() -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, posterior(), version=(2, 0))
    assert refusal(buffer.getvalue()).startswith("sample a/b/c: broken .npy (")


@given(place=st.integers(0, 127), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_head_is_named_or_harmless(place: int, bit: int) -> None:
    """It never ends in anything but a ValueError or an array of the same numbers or shape."""
    changed = bytearray(npy(posterior(2, 2)))
    changed[place] ^= 1 << bit
    message, array = "", np.zeros(32, dtype="<f4")
    try:
        array = decode_array(bytes(changed), "x")
    except ValueError as error:
        message = str(error)
    assert not message or message.startswith("x: broken .npy (")
    assert array.nbytes == 128
