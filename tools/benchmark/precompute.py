"""What oneflow precompute costs beside the bare encoder: the same batches, in one process, in turn."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch

from oneflow_dist.bars import bar
from oneflow_dist.data.picture import decode_picture
from oneflow_dist.precompute.crop import crop_to, nearest_bucket
from oneflow_dist.precompute.run import Precompute
from oneflow_dist.precompute.settings import Options, Tools, load_tools
from oneflow_dist.precompute.source import is_picture, list_raw, open_raw
from tools.benchmark.result import Measured

RATE, BARE, OURS = "images per second", "bare encoder", "ours, shards to latent shards"


def measure(patterns: list[str], autoencoder: str, size: int, rounds: int) -> Measured:
    """The tool and the bare encoder on all pictures of these shards."""
    tools = load_tools(
        Options(
            autoencoder=autoencoder,
            tokenizer="bytes",
            size=size,
            allow_missing_text=True,
            allow_missing_picture=True,
        )
    )
    shards = list_raw(patterns)
    batches = read_batches(tools, shards)
    num_images = sum(map(len, batches))
    bare: list[float] = []
    whole: list[float] = []
    for _ in bar(range(rounds), unit="round"):
        start = time.perf_counter()
        for batch in batches:
            tools.autoencoder.encode(batch)
        bare.append(num_images / (time.perf_counter() - start))
        with tempfile.TemporaryDirectory() as folder:
            whole.append(Precompute(tools, shards, Path(folder), 0.1, 1).run().images_per_second)
    overhead = statistics.median(b / w - 1.0 for b, w in zip(bare, whole, strict=True))
    return Measured(
        numbers={"overhead, median": overhead, "images": num_images}, series={RATE: {BARE: bare, OURS: whole}}
    )


def read_batches(tools: Tools, shards: list[Path]) -> list[torch.Tensor]:
    """All pictures as the encoder gets them: batches of one size."""
    of_size: dict[tuple[int, int], list[torch.Tensor]] = {}
    for shard in bar(shards, "reading", unit="shard"):
        raw = open_raw(shard)
        for sample in raw.samples:
            files = raw.read(sample)
            for member in filter(is_picture, sample.members):
                picture, width, height = decode_picture(files[member.extension], "RGB")
                cropped = crop_to(picture, nearest_bucket(tools.crop, height, width))
                pixels = torch.frombuffer(bytearray(cropped.tobytes()), dtype=torch.uint8)
                image = pixels.view(cropped.height, cropped.width, 3).permute(2, 0, 1) / 127.5 - 1.0
                of_size.setdefault(cropped.size, []).append(image)
        raw.file.close()
    size = tools.options.batch_size
    return [torch.stack(of[i : i + size]) for of in of_size.values() for i in range(0, len(of), size)]
