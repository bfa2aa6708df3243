"""Samples a second of one data worker: read, decode, noise and pack, beside plain webdataset that only decodes."""

from __future__ import annotations

import argparse
import io
import json
import platform
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from oneflow_dist.config import Config, load_config
from oneflow_dist.data.tar import HEADER_KEY
from oneflow_dist.data.tokenizer import load_tokenizer
from oneflow_dist.runtime import run_program

if TYPE_CHECKING:
    from oneflow_dist.containers import Counts
    from oneflow_dist.data.lanes import Lane

LATENT = (2, 16, 16, 32)  # mean and standard deviation in float16: 32 KiB
SHARD_SAMPLES = 1024


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each, in turn")
    parser.add_argument("--passes", type=int, default=10, help="over the data, while memory is watched")
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    args = parser.parse_args()
    # Only now, since it takes seconds: what is wrong on the command line has been answered by then.
    import torch

    from oneflow_dist.containers import Counts
    from oneflow_dist.metrics import padding

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(Path(folder), args.samples)
        config = make_config(Path(folder))
        lane = open_lane(config)
        count_webdataset(shards)  # fills the page cache
        rates: dict[str, list[float]] = {"webdataset": [], "decode": [], "ours": []}
        total = Counts.zeros()
        for _ in tqdm(range(args.rounds), unit="round"):
            rates["webdataset"].append(rate(lambda: count_webdataset(shards)))
            rates["decode"].append(rate(lambda: count_decoded(lane)))
            rates["ours"].append(rate(lambda: count_packs(lane, args.samples).sequences))
        memory = []
        for _ in tqdm(range(args.passes), unit="pass"):
            total += count_packs(lane, args.samples)
            memory.append(resident_mib())
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {
        name: statistics.median(a / b for a, b in zip(values, rates["webdataset"], strict=True))
        for name, values in rates.items()
    }
    print(f"latents of {LATENT} float16, {np.prod(LATENT) * 2 // 1024} KiB; one process, one thread")
    print(f"webdataset, decode only              {medians['webdataset']:8.0f} samples/s")
    print(f"ours, decode only, in random order   {medians['decode']:8.0f} samples/s   {ratios['decode']:.2f}x")
    print(f"ours, drawn, noised and packed       {medians['ours']:8.0f} samples/s   {ratios['ours']:.2f}x")
    print(f"packs of {config.data.rows_per_pack} rows, {1 - padding(total):.2%} full")
    print(f"resident memory after each of {args.passes} passes: {', '.join(f'{m:.0f}' for m in memory)} MiB")
    if args.output:
        result = {"samples_per_second": rates, "ratios": ratios, "fill": 1 - padding(total), "resident_mib": memory}
        args.output.write_text(json.dumps(result | {"machine": platform.processor() or platform.machine()}, indent=1))


def write_shards(folder: Path, num_samples: int) -> list[str]:
    """Captioned latents as tools/precompute_latents.py stores them, of random content."""
    from oneflow_dist.data.latents import encode_array, encode_texts

    rng = np.random.default_rng(0)
    header = {
        "autoencoder": {"scaling_factor": 1.5305, "shift_factor": 0.0609},
        "tokenizer": {"sha256": load_tokenizer("bytes").sha256},
    }
    paths = []
    for shard in range(-(-num_samples // SHARD_SAMPLES)):
        paths.append(str(folder / f"{shard:06d}.tar"))
        with tarfile.open(paths[-1], "w", pax_headers={HEADER_KEY: json.dumps(header)}) as tar:
            for number in range(SHARD_SAMPLES):
                caption = " ".join(["word"] * rng.integers(5, 40))
                posterior = np.stack([rng.standard_normal(LATENT[1:]), np.full(LATENT[1:], 0.1)]).astype(np.float16)
                fields = json.dumps({"width": 256, "height": 128}).encode()
                files = {
                    "txt": caption.encode(),
                    "json": fields,
                    "npy": encode_array(posterior),
                    "tokens.npy": encode_texts([list(caption.encode())]),
                }
                for extension, content in files.items():
                    info = tarfile.TarInfo(f"{number:06d}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    (folder / "mixture.yaml").write_text(
        f"sources: {{captions: {{shards: '{folder}/*.tar', weight: 1, tasks: {{text_to_image: 1, both: 1}}}}}}\n"
    )
    return paths


def make_config(folder: Path) -> Config:
    """configs/oneflow_1b.toml on these shards."""
    return load_config(
        Path(__file__).parents[2] / "configs" / "oneflow_1b.toml",
        [
            f"data.mixture={folder}/mixture.yaml",
            "data.tokenizer=bytes",
            *("data.packs_per_step=1", f"image.height={LATENT[2]}", f"image.width={LATENT[3]}"),
            *("data.images_per_pack=104", "data.tokens_per_pack=16384", "data.bag_tokens_per_pack=16384"),
        ],
    )


def open_lane(config: Config) -> Lane:
    """The lane that a data worker would run."""
    from oneflow_dist.data.lanes import Lane
    from oneflow_dist.data.mixture import load_mixture
    from oneflow_dist.data.shards import open_shards

    sources = load_mixture(config.data.mixture)
    shards = [open_shards(source.name, source.shards) for source in sources]
    return Lane(0, config, sources, shards, load_tokenizer(config.data.tokenizer))


def count_webdataset(shards: list[str]) -> int:
    """One pass of a plain pipeline."""
    import webdataset

    samples: Iterator[object] = webdataset.WebDataset(shards, shardshuffle=False).decode()
    return sum(1 for _ in samples)


def count_decoded(lane: Lane) -> int:
    """One pass of reading and decoding alone, in a shuffled order."""
    from oneflow_dist.data.decoding import CAPTION, decode_record, read_fields

    (stream,) = lane.streams
    for draw in range(len(stream.shards)):
        record = stream.shards.read(stream.order.sample_at(draw)[1])
        fields, reading = read_fields(record), stream.source.reading
        decode_record(record, fields, CAPTION, reading, stream.tokenizer, stream.config.image)
    return len(stream.shards)


def count_packs(lane: Lane, num_samples: int) -> Counts:
    """The counts of as many packs as hold `num_samples`."""
    from oneflow_dist.containers import Counts

    total = Counts.zeros()
    while total.sequences < num_samples:
        total += lane.next_pack().counts
    return total


def rate(work: Callable[[], int]) -> float:
    """Samples a second of a function that returns how many it made."""
    start = time.perf_counter()
    count = work()
    return count / (time.perf_counter() - start)


def resident_mib() -> float:
    """Memory that the process holds now, without pages of mapped files."""
    with Path("/proc/self/status").open() as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["RssAnon"].split()[0]) / 1024


if __name__ == "__main__":
    run_program(main)
