"""A photo of any size as what a model sees of it: cut to what it has seen in training, as latent or as features."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image

from oneflow_dist.config import Config
from oneflow_dist.data.codec import pixels_to_latent
from oneflow_dist.data.media import MODES, encode_view
from oneflow_dist.data.picture import decode_picture, read_picture
from oneflow_dist.modality import ModalityConfig, first_picture, understanding_of
from oneflow_dist.model.understanding import load_understanding
from oneflow_dist.pictures import decoder_of
from oneflow_dist.precompute.crop import REDUCING_GAP, CropPolicy, cover_scale, crop_to, nearest_bucket
from oneflow_dist.runtime import log
from oneflow_dist.views import read_view

MAX_ASPECT = 2.0  # as in oneflow precompute


def encode_photo(data: bytes, config: Config, name: str, is_told: bool = True) -> list[tuple[str, np.ndarray]]:
    """A picture of any size as what the model sees of it, as `sampling.given` says: features, its latent, or both.

    Args:
        is_told: whether the log says so where the model sees not all of it.

    Raises:
        ValueError: not a readable picture, or no codec that makes what this model sees.
    """
    seen, given = [], config.sampling.given
    if given != "latents":
        seen.append(encode_features(data, config, name))
    if given != "features":
        kind = first_picture(config.modality, "--image")
        seen.append((kind, encode_latent(data, config.modality[kind], name, is_told=is_told)))
    return seen


def encode_features(data: bytes, config: Config, name: str) -> tuple[str, np.ndarray]:
    """What the understanding encoder sees in a picture; or the picture, where the model has the encoder in itself."""
    kind = understanding_of(config.modality, "--given")
    modality = config.modality[kind]
    view = encode_view(data, read_view(modality.codec), name)
    if modality.understanding == "live":
        return kind, view
    encoder = load_understanding(modality.codec, "cpu", torch.float32)
    pixels = ((torch.from_numpy(view).permute(1, 2, 0) + 1.0) * 127.5).round().to(torch.uint8)
    features = encoder.encode(pixels[None])[0].numpy()
    if features.shape != (modality.channels, *modality.shape):
        raise ValueError(
            f"{modality.codec}: its map is {list(features.shape)}, but modality.{kind} has "
            f"{[modality.channels, *modality.shape]}; name the encoder of the data with --codec {kind}=FOLDER"
        )
    return kind, features


def encode_latent(
    data: bytes, modality: ModalityConfig, name: str, option: str = "--image", is_told: bool = True
) -> Float32[np.ndarray, "C _ _"]:
    """A picture of any size as its latent, by the modality's codec; an error names the option."""
    if not modality.has_folder and modality.channels not in MODES:
        raise ValueError(
            f"{option}: the model's images are latents of {modality.channels} channels; name what encodes with --codec"
        )
    encoder = decoder_of(modality)
    mode = "RGB" if modality.has_folder else MODES[modality.channels]
    pixels = pixels_to_latent(np.asarray(fit_photo(data, mode, modality, encoder.downsample, name, is_told)))
    if not modality.has_folder:
        return pixels
    mean, _ = encoder.encode(torch.from_numpy(pixels)[None])
    return ((mean[0] - encoder.shift_factor) * encoder.scaling_factor).numpy()


def fit_photo(
    data: bytes, mode: str, modality: ModalityConfig, downsample: int, name: str, is_told: bool = True
) -> Image.Image:
    """A picture that patches fill, of about as many rows as a generated one; the log says where it is not all of it.

    One that is so already keeps its pixels. Any other is cut as `oneflow precompute` cuts the data.

    Args:
        mode: "L" or "RGB".
        downsample: pixels per latent element, along each side.
    """
    across, down = (downsample * side for side in reversed(modality.patch))
    picture = read_picture(data, mode, name)
    width, height = picture.size
    if width % across == height % down == 0 and (width // across) * (height // down) <= modality.num_rows:
        return picture
    unit = math.lcm(across, down)
    size = max(1, round(math.sqrt(modality.num_rows * across * down) / unit)) * unit
    bucket = nearest_bucket(CropPolicy(size=size, multiple_of=unit, max_aspect=MAX_ASPECT), height, width)
    # Again, since a large JPEG is decoded smaller here than in full.
    picture, *_ = decode_picture(data, mode, lambda *size: REDUCING_GAP * cover_scale(bucket, *size))
    if is_told:
        log(f"{name}: {width}x{height} resized and cropped to {bucket[1]}x{bucket[0]}")
    return crop_to(picture, bucket)
