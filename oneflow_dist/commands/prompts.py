"""The prompts of oneflow sample: text, holes, images to paint, and photos that are given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from oneflow_dist.canvas import blank_canvas, parse_prompt
from oneflow_dist.config import Config
from oneflow_dist.data.media import encode_file
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.modality import first_picture
from oneflow_dist.photos import encode_latent, encode_photo
from oneflow_dist.toml import check_range


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
