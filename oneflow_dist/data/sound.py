"""Sounds as latents without an autoencoder: how loud each band of frequencies is in each stretch of time."""

# Shapes: C bands, T frames, L samples of a sound, F = C + 1 frequencies of a frame.

from __future__ import annotations

import io
import wave

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Complex128, Float32, Float64
from torch import Tensor

# Loudness is the amplitude of the tone that a band would hold.
FLOOR = 1e-3  # added before the logarithm, so that silence is -1: 60 dB down, where the noise of 8 bits lies
LOUD, RANGE = 0.25, 5.0  # so far above silence: about the loudest band of a voice, whose values so have a spread of 1
PCM = {1: ("u1", 128), 2: ("<i2", 0)}  # bytes of a sample -> its type, the value of silence
ITERATIONS, MOMENTUM = 64, 0.99  # of finding phases: a spoken digit's latent then is met within 0.03 on average


def encode_sound(data: bytes, rate: int, bands: int, name: str) -> Float32[np.ndarray, "C T"]:
    """A WAV file as the logarithm of loudness, -1 (silence) to about 4, in `bands` bands, lowest first.

    A frame is what a Hann window of two hops sees, a hop is `bands` samples, and the sound ends in silence that makes
    its hops whole. Of the transform's C + 1 frequencies the highest, half the rate, is dropped: recorders filter it
    out (of spoken digits it holds 1e-5 of the power, while the lowest, 0 Hz, has 1 to 3 % through its neighbours).

    Raises:
        ValueError: no WAV of 8 or 16 bits, cut off, empty, or of another rate.
    """
    samples, found_rate = read_wave(data, name)
    if found_rate != rate:
        raise ValueError(f"{name}: its sound has {found_rate} samples a second, not the codec's {rate}; resample it")
    spectrum = _to_spectrum(torch.from_numpy(np.pad(samples, (0, -len(samples) % bands))), bands)
    loudness = spectrum[:bands].abs().numpy() / (bands / 2)
    return (RANGE * np.log1p(loudness / FLOOR) / np.log1p(LOUD / FLOOR) - 1).astype(np.float32)


def decode_sound(latent: Float32[np.ndarray, "C T"], rate: int) -> bytes:
    """A latent as a WAV file of 16 bits, always the same one; no sound has values beyond -1 and 6.5."""
    level = (np.clip(latent, -1, 1.5 * RANGE - 1).astype(np.float64) + 1) / RANGE
    loudness = FLOOR * np.expm1(level * np.log1p(LOUD / FLOOR))
    magnitude = torch.from_numpy(np.pad(loudness * (len(latent) / 2), ((0, 1), (0, 0))))
    return encode_wave(_find_phases(magnitude).numpy(), rate)


def encode_wave(samples: Float64[np.ndarray, "L"], rate: int) -> bytes:
    """A sound of one channel as a WAV file of 16 bits, values beyond [-1, 1] clipped."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes(np.clip(np.rint(samples * 32768), -32768, 32767).astype("<i2").tobytes())
    return file.getvalue()


def read_wave(data: bytes, name: str) -> tuple[Float64[np.ndarray, "L"], int]:
    """The mean of all channels, in [-1, 1], and the samples of a second.

    Raises:
        ValueError: no WAV of 8 or 16 bits, cut off, or empty.
    """
    advice = "write it again or remove the sample"
    try:
        with wave.open(io.BytesIO(data)) as reader:
            channels, width, rate, length, *_ = reader.getparams()
            stored = reader.readframes(length)
    except (wave.Error, EOFError, RuntimeError) as error:  # the last where its parts are longer than all of it
        reason = str(error) or "cut off"
        raise ValueError(f"{name}: its sound is no readable WAV of PCM ({reason}); {advice}") from error
    if width not in PCM:
        raise ValueError(f"{name}: its sound has {8 * width} bits a sample, not 8 or 16; {advice}")
    if not length or len(stored) < length * channels * width:
        has = f"cut off after {len(stored)} bytes" if length else "empty (0 samples)"
        raise ValueError(f"{name}: its sound is {has}; {advice}")
    kind, silence = PCM[width]
    levels = np.frombuffer(stored, dtype=kind).reshape(length, channels).astype(np.float64)
    return (levels.mean(axis=1) - silence) / 2 ** (8 * width - 1), rate


def _window(bands: int) -> Float64[Tensor, "_"]:
    """Hann's window between its zeros: two that overlap by half add up to 1."""
    return torch.sin(torch.pi * (torch.arange(2 * bands, dtype=torch.float64) + 0.5) / (2 * bands)) ** 2


def _to_spectrum(samples: Float64[Tensor, "L"], bands: int) -> Complex128[Tensor, "F T"]:
    """The transform of each frame, whose middle is that of its hop."""
    padded = F.pad(samples, (bands // 2, bands - bands // 2))
    window = _window(bands)
    return torch.stft(padded, 2 * bands, bands, window=window, center=False, return_complex=True)


def _to_samples(spectrum: Complex128[Tensor, "F T"]) -> Float64[Tensor, "L"]:
    """The sound whose transform comes closest, in squares."""
    bands = len(spectrum) - 1
    padded = torch.istft(spectrum, 2 * bands, bands, window=_window(bands), center=False)
    return padded[bands // 2 :][: spectrum.shape[1] * bands]


def _find_phases(magnitude: Float64[Tensor, "F T"]) -> Float64[Tensor, "L"]:
    """A sound of about these magnitudes. At first the phase of each frequency runs on from frame to frame.

    Source: Griffin and Lim 1984; Perraudin, Balazs and Søndergaard 2013, "A fast Griffin-Lim algorithm".
    """
    frequency, frame = (torch.arange(count, dtype=torch.float64) for count in magnitude.shape)
    phase = torch.polar(torch.ones_like(magnitude), torch.pi * torch.outer(frequency, frame))
    previous = torch.zeros_like(phase)
    for _ in range(ITERATIONS):
        found = _to_spectrum(_to_samples(magnitude * phase), len(magnitude) - 1)
        ahead = found + MOMENTUM * (found - previous)
        phase, previous = ahead / ahead.abs().clamp(min=1e-12), found
    return _to_samples(magnitude * phase)
