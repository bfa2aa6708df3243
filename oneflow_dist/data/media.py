"""Files of pieces and their latents, where no network is needed: pictures, sounds, moving pictures."""

# Shapes: C channels of a latent.

from __future__ import annotations

import io

import numpy as np
from jaxtyping import Float32

from oneflow_dist.data.codec import check_sides, pixels_to_latent
from oneflow_dist.data.moving import decode_frames, encode_animation, encode_frames
from oneflow_dist.data.picture import read_picture
from oneflow_dist.data.sound import decode_sound, encode_sound, read_wave
from oneflow_dist.modality import CODECS, PIXELS, SPECTROGRAM, ModalityConfig
from oneflow_dist.views import View

MODES = {1: "L", 3: "RGB"}
FRAME_MILLISECONDS = 120


def encode_file(data: bytes, modality: ModalityConfig, name: str) -> Float32[np.ndarray, "C *shape"]:
    """A picture, an animation or a sound, of any size that `patch` divides, as its latent.

    Raises:
        ValueError: not readable, or one that patches do not fill.
    """
    if modality.has_sound:
        latent = encode_sound(data, int(modality.codec.removeprefix(SPECTROGRAM)), modality.channels, name)
    elif modality.codec != PIXELS:
        raise ValueError(
            f"{name}: a file, but codec {modality.codec!r} reads none; encode it (oneflow precompute), or "
            f"name another codec: {CODECS}"
        )
    elif modality.channels not in MODES:
        raise ValueError(f"{name}: channels is {modality.channels}, not 1 (grey) or 3 (colour), the channels of pixels")
    elif modality.dimensions == 3:
        latent = encode_frames(data, MODES[modality.channels], name)
    else:
        latent = pixels_to_latent(np.asarray(read_picture(data, MODES[modality.channels], name), dtype=np.uint8))
    check_sides(latent.shape[1:], modality, name)
    return latent


def check_file(data: bytes, kind: str, name: str) -> None:
    """Refuse a sound (`wav`) or a moving picture (`apng`) that cannot be read, at whatever rate and size."""
    if kind == "wav":
        read_wave(data, name)
    else:
        encode_frames(data, "RGB", name)


def encode_view(data: bytes, view: View, name: str) -> Float32[np.ndarray, "3 H W"]:
    """A picture as an understanding encoder is shown it, values in [-1, 1]."""
    return pixels_to_latent(np.asarray(view.resize(read_picture(data, "RGB", name)), dtype=np.uint8))


def decode_file(latent: Float32[np.ndarray, "C *shape"], modality: ModalityConfig) -> bytes:
    """The content of a file to look at or to listen to: WAV or GIF; an array of what is neither."""
    file = io.BytesIO()
    if modality.has_sound:
        return decode_sound(latent, int(modality.codec.removeprefix(SPECTROGRAM)))
    if modality.dimensions == 3:
        return encode_animation(decode_frames(latent), FRAME_MILLISECONDS, "gif")
    np.save(file, latent)
    return file.getvalue()
