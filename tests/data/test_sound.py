from __future__ import annotations

import io
import wave

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneflow_dist.data.sound import RANGE, decode_sound, encode_sound, encode_wave
from tests.messages import Message

RATE, BANDS = 8000, 64
NAME = "sample a/b/c, sound 1"
ADVICE = "; write it again or remove the sample"


def tone(frequency: float, samples: int = 40 * BANDS, amplitude: float = 0.5, rate: int = RATE) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * frequency * np.arange(samples) / rate)


def voice(seed: int = 0) -> np.ndarray:
    """Like a spoken word: harmonics of a gliding pitch that swell and fade, and a hiss after them."""
    rng = np.random.default_rng(seed)
    time = np.arange(44 * BANDS) / RATE
    pitch = 2 * np.pi * np.cumsum(rng.uniform(90, 160) + 200 * time) / RATE
    vowel = sum(rng.uniform(0.02, 0.1) * np.sin(k * pitch) for k in range(1, 12)) * np.sin(np.pi * time / time[-1]) ** 2
    return vowel + 0.02 * rng.standard_normal(len(time)) * (time > 0.25)


def wav(levels: np.ndarray, width: int = 2, channels: int = 1, rate: int = RATE) -> bytes:
    """A file of stored levels, of which the channels take turns."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((channels, width, rate, 0, "NONE", "not compressed"))
        writer.writeframes(levels.tobytes())
    return file.getvalue()


def encode(samples: np.ndarray, bands: int = BANDS, rate: int = RATE) -> np.ndarray:
    return encode_sound(encode_wave(samples, rate), rate, bands, NAME)


def samples_of(data: bytes) -> np.ndarray:
    with wave.open(io.BytesIO(data)) as reader:
        assert reader.getparams()[:3] == (1, 2, RATE)
        return np.frombuffer(reader.readframes(reader.getnframes()), dtype="<i2") / 32768


def refusal(data: bytes, rate: int = RATE) -> str:
    with pytest.raises(ValueError) as error:
        encode_sound(data, rate, BANDS, NAME)
    return Message(error.value)


# What a latent says.


@pytest.mark.parametrize("band", [1, 7, 40, 63])
def test_a_tone_is_loudest_in_its_band_all_the_time(band: int) -> None:
    latent = encode(tone(band * RATE / (2 * BANDS) + 10))
    assert latent.shape == (BANDS, 40)
    assert latent.dtype == np.float32
    assert set(latent.argmax(axis=0)) == {band}


def test_loudness_is_that_of_the_tone_and_four_is_a_quarter() -> None:
    latents = [encode(tone(1000, amplitude=a))[16, 1:-1] for a in (1.0, 0.25, 0.025)]
    decibel = [20 * np.log10(4.0), 0.0, -20.0]
    for latent, expected in zip(latents, decibel, strict=True):
        np.testing.assert_allclose(latent, 4 + expected * RANGE / (20 * np.log10(251)), atol=0.02 * RANGE / 2)


def test_silence_is_minus_one_and_stays_silent() -> None:
    latent = encode(np.zeros(10 * BANDS))
    assert (latent == -1).all()
    assert not samples_of(decode_sound(latent, RATE)).any()


def test_a_voice_lies_about_between_minus_one_and_four() -> None:
    latents = np.stack([encode(voice(seed)) for seed in range(4)])
    assert latents.min() >= -1
    assert np.quantile(latents, 0.999) < 4.25
    assert latents.std() > 0.75


@pytest.mark.parametrize(("samples", "frames"), [(1, 1), (63, 1), (64, 1), (65, 2), (128, 2), (2816, 44)])
def test_the_last_frame_is_filled_with_silence(samples: int, frames: int) -> None:
    sound = voice()[:samples]
    assert encode(sound).shape == (BANDS, frames)
    np.testing.assert_array_equal(encode(sound), encode(np.pad(sound, (0, 64 * frames - samples))))


def test_eight_bits_and_many_channels_are_the_mean_in_mono() -> None:
    levels = np.random.default_rng(0).integers(256, size=(640, 3))
    expected = encode((levels.mean(axis=1) - 128) / 128)
    found = encode_sound(wav(levels.astype(np.uint8), width=1, channels=3), RATE, BANDS, NAME)
    np.testing.assert_allclose(found, expected, atol=2e-3)  # `expected` was rounded to 16 bits
    wide = ((levels - 128) * 256).astype("<i2")
    np.testing.assert_array_equal(encode_sound(wav(wide, channels=3), RATE, BANDS, NAME), found)


# What becomes of it.


@pytest.mark.parametrize("bands", [1, 3, 64])
def test_a_sound_keeps_its_length_and_is_always_the_same(bands: int) -> None:
    latent = encode(voice()[: 12 * bands], bands)
    data = decode_sound(latent, RATE)
    assert len(samples_of(data)) == 12 * bands
    assert decode_sound(latent, RATE) == data


@pytest.mark.parametrize("frequency", [300.0, 440.0, 1000.0, 3000.0])
def test_a_tone_keeps_its_frequency(frequency: float) -> None:
    latent = encode(tone(frequency))
    found = samples_of(decode_sound(latent, RATE))
    band = int(latent.mean(axis=1).argmax())
    assert encode(found).mean(axis=1).argmax() == band
    peak = np.abs(np.fft.rfft(found)).argmax() * RATE / len(found)
    assert peak == pytest.approx(frequency, abs=RATE / (2 * BANDS))  # the width of a band


@pytest.mark.parametrize("seed", range(4))
def test_what_is_heard_has_the_latent_that_was_asked_for(seed: int) -> None:
    latent = encode(voice(seed))
    assert np.abs(encode(samples_of(decode_sound(latent, RATE))) - latent).mean() < 0.015 * RANGE


def test_latents_beyond_any_sound_are_as_loud_as_can_be() -> None:
    latent = np.full((BANDS, 4), 1e6, dtype=np.float32)
    latent[:, ::2] = -1e6
    assert np.abs(samples_of(decode_sound(latent, RATE))).max() <= 1
    assert encode_wave(np.array([-7.0, 7.0]), RATE)[-4:] == b"\x00\x80\xff\x7f"


# What is refused, and how it is said.


def test_what_is_no_wav_is_named() -> None:
    assert refusal(b"").startswith(f"{NAME}: its sound is no readable WAV of PCM (cut off)")
    assert refusal(b"RIFF").endswith("WAV of PCM (cut off)" + ADVICE)
    assert refusal(b"this is no sound").startswith(f"{NAME}: its sound is no readable WAV of PCM (file does not")
    floats = bytearray(wav(np.zeros(8, dtype="<i2")))
    floats[20] = 3  # the format's number
    assert refusal(bytes(floats)) == f"{NAME}: its sound is no readable WAV of PCM (unknown format: 3){ADVICE}"


def test_another_rate_is_named_with_the_one_that_is_wanted() -> None:
    data = wav(np.zeros(8, dtype="<i2"), rate=16000)
    assert refusal(data) == f"{NAME}: its sound has 16000 samples a second, not 8000; resample it"


@pytest.mark.parametrize("width", [3, 4])
def test_other_bits_are_named(width: int) -> None:
    message = f"{NAME}: its sound has {8 * width} bits a sample, not 8 or 16{ADVICE}"
    assert refusal(wav(np.zeros(width, dtype=np.uint8), width=width)) == message


def test_an_empty_sound_is_named() -> None:
    assert refusal(wav(np.zeros(0, dtype="<i2"))) == f"{NAME}: its sound is empty (0 samples){ADVICE}"


def test_a_sound_that_is_cut_off_is_named() -> None:
    whole = encode_wave(voice(), RATE)
    assert refusal(whole[:-7]) == f"{NAME}: its sound is cut off after {2 * len(voice()) - 7} bytes{ADVICE}"


@given(st.data())
def test_a_damaged_sound_is_named_or_read(data: st.DataObject) -> None:
    content = bytearray(wav(np.arange(64, dtype="<i2"), channels=2))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 47))] = data.draw(st.integers(0, 255))
    try:
        encode_sound(bytes(content), RATE, BANDS, NAME)
    except ValueError:
        assert refusal(bytes(content)).startswith(f"{NAME}: its sound ")
