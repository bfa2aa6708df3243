"""All that the bytes of an output depend on, besides its sources; written once, compared at every later start."""

from __future__ import annotations

import importlib.metadata
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from oneflow_dist.data.tokenizer import Tokenizer, load_tokenizer
from oneflow_dist.files import claim
from oneflow_dist.model.autoencoder import Autoencoder, load_autoencoder
from oneflow_dist.model.understanding import Understanding, load_understanding
from oneflow_dist.precompute.crop import CropPolicy
from oneflow_dist.precompute.encoder import Encoder
from oneflow_dist.precompute.prepare import Preparation
from oneflow_dist.precompute.shard_work import encode_json

SETTINGS = "settings.json"
STORED = ("float16", "float32")
COMPUTED = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a user asks for."""

    autoencoder: str
    tokenizer: str
    features: str | None = None
    size: int = 256
    multiple_of: int | None = None  # None: twice the autoencoder's downsampling
    max_aspect: float = 2.0
    mirror: bool = False
    dtype: str = "float16"  # of what is stored
    compute_dtype: str = "float32"  # of the networks
    batch_size: int = 32
    threads: int = 1  # of torch
    allow_missing_text: bool = False
    allow_missing_picture: bool = False
    device: str = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """Networks, tokenizer and crop policy, ready for use."""

    options: Options
    autoencoder: Autoencoder
    tokenizer: Tokenizer
    understanding: Understanding | None
    crop: CropPolicy

    def preparation(self) -> Preparation:
        """How samples are prepared."""
        return Preparation(
            crop=self.crop,
            tokenizer=self.tokenizer,
            view=self.understanding.view if self.understanding else None,
            allow_missing_text=self.options.allow_missing_text,
            allow_missing_picture=self.options.allow_missing_picture,
        )

    def encoder(self) -> Encoder:
        """The networks with a new clock."""
        return Encoder(
            autoencoder=self.autoencoder,
            understanding=self.understanding,
            mirror=self.options.mirror,
            device=torch.device(self.options.device),
        )

    def header(self) -> dict[str, Any]:
        """What every shard says of how it was made."""
        packages = ["oneflow_dist", "torch", "diffusers", *([self.understanding.package] if self.understanding else [])]
        return {
            "autoencoder": self.autoencoder.describe(),
            "tokenizer": {
                "name": Path(self.options.tokenizer.partition("#")[0]).name,
                "sha256": self.tokenizer.sha256,
                "vocab_size": self.tokenizer.vocab_size,
            },
            "dtype": self.options.dtype,
            "crop": self.crop.describe(),
            "mirror": self.options.mirror,
            "features": self.understanding.describe() if self.understanding else None,
            "versions": {name: _version(name) for name in packages},
        }

    def settings(self) -> dict[str, Any]:
        """The header, and what else decides on the bytes."""
        names = ("compute_dtype", "batch_size", "threads", "allow_missing_text", "allow_missing_picture")
        device = torch.device(self.options.device).type
        return {**self.header(), **{name: getattr(self.options, name) for name in names}, "device": device}


def load_tools(options: Options) -> Tools:
    """Read the networks and check the options.

    Raises:
        ValueError: an option is impossible, a folder or file does not hold what it should.
    """
    for name in ("batch_size", "threads"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')}: {getattr(options, name)} must be at least 1")
    torch.set_num_threads(options.threads)
    compute_dtype = COMPUTED[options.compute_dtype]
    autoencoder = load_autoencoder(options.autoencoder, options.device, compute_dtype)
    understanding = load_understanding(options.features, options.device, compute_dtype) if options.features else None
    multiple_of = options.multiple_of if options.multiple_of is not None else 2 * autoencoder.downsample
    if multiple_of < 1 or multiple_of % autoencoder.downsample:
        raise ValueError(
            f"--multiple-of: {multiple_of} is no multiple of {autoencoder.downsample}, the pixels of one latent "
            f"element of {autoencoder.name}; set it to {2 * autoencoder.downsample}"
        )
    return Tools(
        options=options,
        autoencoder=autoencoder,
        tokenizer=load_tokenizer(options.tokenizer),
        understanding=understanding,
        crop=CropPolicy(size=options.size, multiple_of=multiple_of, max_aspect=options.max_aspect),
    )


def keep_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write the settings of a new output folder, or compare them with those that it was begun with.

    Raises:
        ValueError: they differ.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / SETTINGS
    claimed = claim(path, wait=True)
    if claimed is not None:
        with claimed:
            claimed.file.write(encode_json(settings))
            claimed.commit()
        return
    stored, now = _flatten(read_json(path)), _flatten(settings)
    for key in dict.fromkeys([*now, *stored]):
        if stored.get(key) != now.get(key):
            raise ValueError(
                f"{path}: {key} is {json.dumps(stored.get(key))} there but {json.dumps(now.get(key))} now; "
                f"use the same options and versions, or another output folder"
            )


def read_json(path: Path) -> dict[str, Any]:
    """An object in a file of ours.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({error}); move the folder away and start again") from error


def world() -> tuple[int, int, int]:
    """(rank, local rank, number of processes) that torchrun set; no process group is needed."""
    rank, local_rank, size = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    return rank, local_rank, max(1, size)


def _flatten(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
