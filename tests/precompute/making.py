"""Small raw shards, whole and with every known fault, and a small autoencoder."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from oneflow_dist.data.moving import encode_animation
from oneflow_dist.data.sound import encode_wave
from oneflow_dist.precompute.run import Precompute, Summary
from oneflow_dist.precompute.settings import Options, Tools, load_tools

PIXELS = Options(autoencoder="pixels", tokenizer="bytes", size=16, allow_missing_picture=True)
FLAGS = ("--autoencoder", "pixels", "--tokenizer", "bytes", "--size", "16", "--allow-missing-picture")
SHAPES = ((16, 16), (20, 12), (12, 20), (40, 10), (31, 33))  # height, width


def picture(seed: int, height: int = 16, width: int = 16, mode: str = "RGB") -> Image.Image:
    """A coloured ramp with noise: no two seeds give the same."""
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 160, width)[None, :, None] * rng.random(3) + rng.integers(0, 90, (height, width, 3))
    return Image.fromarray(ramp.astype(np.uint8)).convert(mode)


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """A picture as a file's content."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(seed: int, height: int = 16, width: int = 16) -> bytes:
    return encode(picture(seed, height, width))


def png_of_size(width: int, height: int) -> bytes:
    """A PNG that says that it is large, and holds next to nothing."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")


def write_tar(path: Path, files: Sequence[tuple[str, bytes]]) -> Path:
    """A tar of (name, content)."""
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def read_tar(path: Path) -> dict[str, bytes]:
    """Contents by name, in order."""
    with tarfile.open(path) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]


def pair(number: int) -> list[tuple[str, bytes]]:
    """A picture with its caption and its metadata."""
    height, width = SHAPES[number % len(SHAPES)]
    return [
        (f"{number:03d}.png", png(number, height, width)),
        (f"{number:03d}.txt", f"picture number {number}".encode()),
        (f"{number:03d}.json", json.dumps({"id": number}).encode()),
    ]


def document(number: int, num_images: int = 2, text: str = "text {}") -> list[tuple[str, bytes]]:
    """Text, which names its place, and JPEGs with captions in turn."""
    segments = []
    for place in range(num_images):
        segments.append({"type": "text", "text": text.format(place)})
        caption = f"A figure with the number {number}.{place}"
        segments.append({"type": "image", "image": f"{place}.jpg", "caption": caption})
    files = [
        (f"doc{number}.{place}.jpg", encode(picture(100 * number + place, 24, 30), "JPEG"))
        for place in range(num_images)
    ]
    return [(f"doc{number}.json", json.dumps({"segments": segments}).encode()), *files]


def wav(num_samples: int = 64) -> bytes:
    """A sound of 8,000 samples a second."""
    return encode_wave(0.3 * np.sin(np.arange(num_samples)), 8000)


def apng(num_frames: int = 2) -> bytes:
    """A moving picture of 8 x 8 pixels."""
    return encode_animation([picture(number, 8, 8, "L") for number in range(num_frames)], 100, "png")


def show(number: int) -> list[tuple[str, bytes]]:
    """A document with a picture, a sound, a moving picture and a word."""
    kinds = {"sound": ("0.wav", wav(64 + 8 * number)), "image": ("1.png", png(number)), "video": ("2.apng", apng())}
    segments = [{"type": kind, kind: name} for kind, (name, _) in kinds.items()]
    segments.append({"type": "text", "text": f"show {number}"})
    files = [(f"show{number}.{name}", content) for name, content in kinds.values()]
    return [(f"show{number}.json", json.dumps({"segments": segments}).encode()), *files]


def write_shards(folder: Path, num_shards: int = 3, samples: int = 5) -> list[Path]:
    """Shards of pairs, a document and a text each."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for shard in range(num_shards):
        pairs = [file for number in range(samples) for file in pair(shard * samples + number)]
        files = [*pairs, *document(shard), (f"text{shard}.txt", b"text alone")]
        paths.append(write_tar(folder / f"raw-{shard:02d}.tar", files))
    return paths


def save_autoencoder(folder: Path, **config: Any) -> Path:
    """A random AutoencoderKL that halves the sides."""
    import torch
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    settings: dict[str, Any] = {"latent_channels": 4, "scaling_factor": 0.5, "shift_factor": 0.1} | config
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, **kinds, **settings).save_pretrained(folder)
    return folder


def save_siglip(folder: Path, **config: Any) -> Path:
    """A random vision tower with maps of 2 rows, 2 columns and 16 channels, and its processor."""
    import torch
    from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    settings: dict[str, Any] = {**sizes, "image_size": 16, "patch_size": 8} | config
    SiglipVisionModel(SiglipVisionConfig(**settings)).save_pretrained(folder)
    side = settings["image_size"]
    SiglipImageProcessorPil(size={"height": side, "width": side}).save_pretrained(folder)
    return folder


def make_tools(**options: Any) -> Tools:
    names = Options.__dataclass_fields__
    return load_tools(Options(**({name: getattr(PIXELS, name) for name in names} | options)))


def run(shards: Sequence[Path], folder: Path, max_bad: float = 0.1, **options: Any) -> Summary:
    """The tool's work, in this process."""
    return Precompute(make_tools(**options), list(shards), folder, max_bad, decode_threads=2).run()


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def reasons(folder: Path) -> dict[str, str]:
    """What quarantine.jsonl says, by sample."""
    lines = [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]
    return {line["name"]: line["reason"] for line in lines}
