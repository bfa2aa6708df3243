"""Arrays on disk: latents, stored raw and drawn from when they are loaded, and the tokens of texts."""

# Shapes: C h w latent.

from __future__ import annotations

import functools
import io
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32

from oneflow_dist.containers import PiecePart
from oneflow_dist.data.codec import check_sides
from oneflow_dist.flow.noising import gaussian
from oneflow_dist.modality import AXES, ModalityConfig

CHECK = "run oneflow precompute --check on its folder"
NUMBERS = ("<f2", "<f4", "<i4")


def encode_array(array: np.ndarray) -> bytes:
    """An array as the content of an .npy file."""
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()


def decode_array(data: bytes, name: str) -> np.ndarray:
    """The array in an .npy file, without a copy and without ever unpickling.

    Raises:
        ValueError: not an .npy file of numbers, or cut off.
    """
    start = 10 + int.from_bytes(data[8:10], "little")
    try:
        dtype, shape = _read_npy_head(data[:start])
        return np.frombuffer(data, dtype=dtype, offset=start).reshape(shape)
    except Exception as error:  # numpy raises all kinds: its head is Python, its sizes are anybody's
        raise ValueError(f"{name}: broken .npy ({error}); {CHECK}") from error


def encode_texts(texts: list[list[int]]) -> bytes:
    """Token ids of several texts as an .npy file: how many texts, the length of each, then all ids."""
    ids = itertools.chain.from_iterable(texts)
    return encode_array(np.array([len(texts), *map(len, texts), *ids], dtype=np.int32))


def decode_texts(data: bytes, name: str) -> list[list[int]]:
    """The token ids of each text that `encode_texts` stored.

    Raises:
        ValueError: broken, or the lengths do not add up.
    """
    array = decode_array(data, name)
    stored = array.ravel().tolist() if array.dtype.kind == "i" else []
    num_texts = stored[0] if stored else 0
    ends = list(itertools.accumulate(stored[1 : 1 + num_texts], initial=1 + num_texts))
    if not stored or len(ends) != 1 + num_texts or ends[-1] != len(stored):
        raise ValueError(f"{name}: {array.size} numbers are no texts with their lengths; {CHECK}")
    return [stored[start:end] for start, end in itertools.pairwise(ends)]


def decode_latent(
    data: bytes,
    mirrored: bytes | None,
    made_by: Mapping[str, Any] | None,
    modality: ModalityConfig,
    kind: str,
    name: str,
) -> PiecePart:
    """A stored posterior, mean and standard deviation [2, C, ...], or values alone [C, ...].

    Args:
        mirrored: the same of the flipped picture, where it was stored.
        made_by: of the shard's header: the autoencoder with its scaling and shift; None for values as they are.
        kind: the name of the modality.

    Raises:
        ValueError: broken, no floats, or of a shape that the modality does not allow.
    """
    stored, where = decode_array(data, name), f"modality.{kind}"
    has_deviation = stored.ndim == 2 + modality.dimensions and len(stored) == 2
    shape = stored.shape[has_deviation:]
    if len(shape) != 1 + modality.dimensions or shape[0] != modality.channels:
        raise ValueError(
            f"{name}: a latent of shape {list(stored.shape)}, not [2, {where}.channels ({modality.channels})"
            f"{''.join(f', {axis}' for axis in AXES[modality.dimensions])}]; set {where} to what encoded it"
        )
    check_sides(shape[1:], modality, name)
    twin = stored[:0] if mirrored is None else decode_array(mirrored, name)
    if mirrored is not None and twin.shape != stored.shape:
        raise ValueError(
            f"{name}: a mirrored latent of shape {list(twin.shape)}, not {list(stored.shape)} as the latent; {CHECK}"
        )
    if not stored.dtype.kind == twin.dtype.kind == "f":
        raise ValueError(f"{name}: a latent of whole numbers, not of float16 or float32; {CHECK}")
    return PiecePart(
        modality=kind,
        posterior=stored.reshape(-1, *shape),
        mirrored=twin.reshape(-1, *shape),
        shift=made_by["shift_factor"] if made_by is not None else 0.0,
        scale=made_by["scaling_factor"] if made_by is not None else 1.0,
    )


def draw_latent(part: PiecePart, rng: np.random.Generator) -> Float32[np.ndarray, "C *shape"]:
    """What the model sees of a piece: one draw from its posterior, mirrored in half of the cases if that is stored."""
    is_mirrored = len(part.mirrored) > 0 and rng.random() < 0.5
    stored = part.mirrored if is_mirrored else part.posterior
    if len(stored) == 1 and stored.dtype == np.float32 and (part.shift, part.scale) == (0.0, 1.0):
        return stored[0]
    latent, *std = to_float32(stored)
    for deviation in std:
        deviation *= gaussian(rng, deviation.shape)
        latent += deviation
    latent -= np.float32(part.shift)
    latent *= np.float32(part.scale)
    return latent


def to_float32(values: np.ndarray) -> Float32[np.ndarray, "..."]:
    """A copy in float32; torch converts float16 five times as fast as numpy."""
    if values.dtype == np.float32:
        return values.copy()
    bits = torch.empty(values.shape, dtype=torch.int16)
    bits.numpy()[...] = values.view(np.int16)
    return bits.view(torch.float16).float().numpy()


def stack_posterior(mean: Float[np.ndarray, "C h w"], std: Float[np.ndarray, "C h w"], dtype: str) -> np.ndarray:
    """Mean and standard deviation as they are stored."""
    return np.stack([mean, std]).astype(dtype)


@functools.lru_cache(maxsize=256)
def _read_npy_head(head: bytes) -> tuple[np.dtype[Any], tuple[int, ...]]:
    file = io.BytesIO(head)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not version 1.0 of the format")
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
    if is_fortran or dtype.str not in NUMBERS:
        raise ValueError(f"{dtype} values, not {', '.join(NUMBERS)} in C order")
    return dtype, shape
