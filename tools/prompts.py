"""The prompt of tools/sample.py: text, holes, images to paint, and photos cut to what the model has seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image

from oneflow_dist.canvas import parse_prompt
from oneflow_dist.config import Config
from oneflow_dist.data.codec import MODES, pixels_to_latent
from oneflow_dist.data.picture import decode_picture, read_picture
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.model.autoencoder import PIXELS
from oneflow_dist.pictures import load_decoder
from oneflow_dist.precompute.crop import REDUCING_GAP, CropPolicy, cover_scale, crop_to, nearest_bucket

MAX_ASPECT = 2.0  # as in tools/precompute_latents.py


def read_prompt(parts: Sequence[tuple[str, Any]], tokenizer: Tokenizer, config: Config) -> list[Any]:
    """Token ids, latents, images to paint (None) and holes (`...`), in order.

    Args:
        parts: kind ("text", "image", "paint", "hole") and value of each; of an image the path.
    """
    prompt: list[Any] = []
    for kind, value in parts:
        if kind == "text":
            prompt += parse_prompt(value, tokenizer)
        elif kind == "image":
            if not value.is_file():
                raise ValueError(f"--image: no such file {value}")
            prompt.append(encode_photo(value.read_bytes(), config, str(value)))
        else:
            prompt.append(None if kind == "paint" else ...)
    return prompt


def encode_photo(data: bytes, config: Config, name: str) -> Float32[np.ndarray, "C _ _"]:
    """A picture of any size as the latent that the model sees, by `sampling.autoencoder`.

    Raises:
        ValueError: not a readable picture, or no autoencoder that makes latents for this model.
    """
    encoder, channels = load_decoder(config.sampling.autoencoder), config.image.channels
    is_pixels = config.sampling.autoencoder == PIXELS
    if is_pixels and channels not in MODES:
        raise ValueError(
            f"--image: the model's images are latents of {channels} channels; name what encodes with --autoencoder"
        )
    picture = fit_photo(data, MODES[channels] if is_pixels else "RGB", config, encoder.downsample, name)
    pixels = pixels_to_latent(np.asarray(picture))
    if is_pixels:
        return pixels
    mean, _ = encoder.encode(torch.from_numpy(pixels)[None])
    return ((mean[0] - encoder.shift_factor) * encoder.scaling_factor).numpy()


def fit_photo(data: bytes, mode: str, config: Config, downsample: int, name: str) -> Image.Image:
    """A picture that patches fill, of about as many rows as a generated one; says so where it is not all of it.

    One that is so already keeps its pixels. Any other is cut as `tools/precompute_latents.py` cuts the data.

    Args:
        mode: "L" or "RGB".
        downsample: pixels per latent element, along each side.
    """
    unit = downsample * config.image.patch_size
    picture = read_picture(data, mode, name)
    width, height = picture.size
    if width % unit == height % unit == 0 and (width // unit) * (height // unit) <= config.image.num_rows:
        return picture
    size = max(1, round(math.sqrt(config.image.num_rows))) * unit
    bucket = nearest_bucket(CropPolicy(size=size, multiple_of=unit, max_aspect=MAX_ASPECT), height, width)
    # Again, since a large JPEG is decoded smaller here than in full.
    picture, *_ = decode_picture(data, mode, lambda *size: REDUCING_GAP * cover_scale(bucket, *size))
    print(f"{name}: {width}x{height} resized and cropped to {bucket[1]}x{bucket[0]}", flush=True)
    return crop_to(picture, bucket)
