"""The prompts of tools/sample.py: text, holes, images to paint, and photos cut to what the model has seen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from PIL import Image

from oneflow_dist.canvas import blank_canvas, parse_prompt
from oneflow_dist.config import Config
from oneflow_dist.data.codec import pixels_to_latent
from oneflow_dist.data.media import MODES, encode_file, encode_view
from oneflow_dist.data.picture import decode_picture, read_picture
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.modality import ModalityConfig, first_picture, understanding_of
from oneflow_dist.model.understanding import load_understanding
from oneflow_dist.pictures import decoder_of
from oneflow_dist.precompute.crop import REDUCING_GAP, CropPolicy, cover_scale, crop_to, nearest_bucket
from oneflow_dist.runtime import log
from oneflow_dist.toml import check_range
from oneflow_dist.views import read_view

MAX_ASPECT = 2.0  # as in tools/precompute_latents.py


def read_prompt(parts: Sequence[tuple[str, Any]], tokenizer: Tokenizer, config: Config) -> list[Any]:
    """What `blank_canvas` takes.

    Args:
        parts: kind ("text", "image", "piece", "vary", "paint", "hole") and value of each; of an image the path, of a
            piece its modality and path, of a variation the time and path.
    """
    prompt: list[Any] = []
    for kind, value in parts:
        if kind == "text":
            prompt += parse_prompt(value, tokenizer)
        elif kind == "image":
            prompt += encode_photo(_read(value, "--image"), config, str(value))
        elif kind == "piece":
            prompt.append(_read_piece(value, config))
        elif kind == "vary":
            prompt.append(_read_variation(value, config))
        else:
            prompt.append((first_picture(config.modality, "--paint"), None) if kind == "paint" else ...)
    return prompt


def read_prompts(
    parts: Sequence[tuple[str, Any]], lines: Sequence[tuple[str, str]] | None, tokenizer: Tokenizer, config: Config
) -> list[tuple[str, list[Any]]]:
    """The prompt of the command line, or that of each line of a file, behind what an error calls it.

    Args:
        lines: place and text of each; without any the parts are the prompt.
    """
    if lines is None:
        return [("the prompt", read_prompt(parts, tokenizer, config))]
    prompts = []
    for place, text in lines:
        with _at(place):
            prompts.append((place, read_prompt([("text", text)], tokenizer, config)))
    return prompts


def check_prompts(prompts: Sequence[tuple[str, list[Any]]], tokenizer: Tokenizer, config: Config) -> None:
    """Refuse what cannot be generated from, before anything slow is done."""
    sampling = config.sampling
    for place, prompt in prompts:
        with _at(place):
            canvas = blank_canvas(prompt, tokenizer, config.modality, seed=0, index=0)
        if canvas.num_rows > sampling.max_rows:
            raise ValueError(
                f"{place}: takes {canvas.num_rows} rows alone, more than sampling.max_rows ({sampling.max_rows}); "
                "raise --max-rows, or shorten it"
            )
        if sampling.blocks and not canvas.grows_at_end:
            raise ValueError(
                f"{place}: has a hole or a piece to make before its end, but sampling.blocks is {sampling.blocks}; "
                "remove it, or take 0"
            )


@contextmanager
def _at(place: str) -> Iterator[None]:
    """Inside, an error tells of which prompt it is."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def encode_photo(data: bytes, config: Config, name: str) -> list[tuple[str, np.ndarray]]:
    """A picture of any size as what the model sees of it, as `sampling.given` says: features, its latent, or both.

    Raises:
        ValueError: not a readable picture, or no codec that makes what this model sees.
    """
    seen, given = [], config.sampling.given
    if given != "latents":
        seen.append(encode_features(data, config, name))
    if given != "features":
        kind = first_picture(config.modality, "--image")
        seen.append((kind, encode_latent(data, config.modality[kind], name)))
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
    data: bytes, modality: ModalityConfig, name: str, option: str = "--image"
) -> Float32[np.ndarray, "C _ _"]:
    """A picture of any size as its latent, by the modality's codec; an error names the option."""
    if not modality.has_folder and modality.channels not in MODES:
        raise ValueError(
            f"{option}: the model's images are latents of {modality.channels} channels; name what encodes with --codec"
        )
    encoder = decoder_of(modality)
    mode = "RGB" if modality.has_folder else MODES[modality.channels]
    pixels = pixels_to_latent(np.asarray(fit_photo(data, mode, modality, encoder.downsample, name)))
    if not modality.has_folder:
        return pixels
    mean, _ = encoder.encode(torch.from_numpy(pixels)[None])
    return ((mean[0] - encoder.shift_factor) * encoder.scaling_factor).numpy()


def _read_piece(value: str, config: Config) -> tuple[str, np.ndarray]:
    kind, _, path = value.partition("=")
    if kind not in config.modality or not path:
        raise ValueError(f"--piece: {value!r} is not NAME=FILE of a modality ({', '.join(config.modality)})")
    return kind, encode_file(_read(Path(path), "--piece"), config.modality[kind], path)


def _read_variation(value: str, config: Config) -> tuple[str, np.ndarray, float]:
    """A picture to make anew: its latent alone, and the time from whose look it is made."""
    text, _, path = value.partition("=")
    try:
        time = float(text if path else "")
    except ValueError:
        raise ValueError(f"--vary: {value!r} is not TIME=FILE, as 0.6=photo.jpg") from None
    check_range("--vary", time, "(0, 1)")
    kind = first_picture(config.modality, "--vary")
    return kind, encode_latent(_read(Path(path), "--vary"), config.modality[kind], path, "--vary"), time


def _read(path: Path, option: str) -> bytes:
    if not path.is_file():
        raise ValueError(f"{option}: no such file {path}")
    return path.read_bytes()


def fit_photo(data: bytes, mode: str, modality: ModalityConfig, downsample: int, name: str) -> Image.Image:
    """A picture that patches fill, of about as many rows as a generated one; says so where it is not all of it.

    One that is so already keeps its pixels. Any other is cut as `tools/precompute_latents.py` cuts the data.

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
    log(f"{name}: {width}x{height} resized and cropped to {bucket[1]}x{bucket[0]}")
    return crop_to(picture, bucket)
