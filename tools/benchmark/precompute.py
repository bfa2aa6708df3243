"""What tools/precompute_latents.py costs beside the bare encoder: the same batches, in one process, in turn."""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from oneflow_dist.runtime import run_program

if TYPE_CHECKING:
    import torch

    from oneflow_dist.precompute.settings import Tools


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", nargs="+", help="brace or wildcard patterns of raw tars")
    parser.add_argument("--autoencoder", required=True, help="folder with a diffusers AutoencoderKL")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each, in turn")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    # Only now, since it takes seconds: what is wrong on the command line has been answered by then.
    from oneflow_dist.precompute.run import Precompute
    from oneflow_dist.precompute.settings import Options, load_tools
    from oneflow_dist.precompute.source import list_raw

    tools = load_tools(
        Options(
            autoencoder=args.autoencoder,
            tokenizer="bytes",
            size=args.size,
            allow_missing_text=True,
            allow_missing_picture=True,
        )
    )
    shards = list_raw(args.shards)
    batches = read_batches(tools, shards)
    num_images = sum(map(len, batches))
    bare, whole = [], []
    for _ in tqdm(range(args.rounds), unit="round"):
        start = time.perf_counter()
        for batch in batches:
            tools.autoencoder.encode(batch)
        bare.append(num_images / (time.perf_counter() - start))
        with tempfile.TemporaryDirectory() as folder:
            whole.append(Precompute(tools, shards, Path(folder), 0.1, 1).run().images_per_second)
    overhead = statistics.median(b / w - 1.0 for b, w in zip(bare, whole, strict=True))
    print(f"bare forward, batches in memory   {statistics.median(bare):7.1f} images/s")
    print(f"shards to latent shards           {statistics.median(whole):7.1f} images/s   overhead {overhead:.1%}")
    if args.output:
        args.output.write_text(json.dumps({"bare": bare, "whole": whole, "overhead": overhead}, indent=1))


def read_batches(tools: Tools, shards: list[Path]) -> list[torch.Tensor]:
    """All pictures as the encoder gets them: batches of one size."""
    import torch

    from oneflow_dist.data.picture import decode_picture
    from oneflow_dist.precompute.crop import crop_to, nearest_bucket
    from oneflow_dist.precompute.source import is_picture, open_raw

    of_size: dict[tuple[int, int], list[torch.Tensor]] = {}
    for shard in tqdm(shards, "reading", unit="shard"):
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


if __name__ == "__main__":
    run_program(main)
