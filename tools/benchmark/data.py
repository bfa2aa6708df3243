"""Samples a second of one data worker, stage by stage, beside plain webdataset that only decodes."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oneflow_dist.config import Config
from oneflow_dist.containers import Counts, PackedBatch
from oneflow_dist.data.lanes import Lane
from oneflow_dist.data.latents import encode_array, encode_texts
from oneflow_dist.data.mixture import load_mixture
from oneflow_dist.data.shards import open_shards
from oneflow_dist.data.tar import HEADER_KEY
from oneflow_dist.data.tokenizer import load_tokenizer
from oneflow_dist.extras import require
from oneflow_dist.metrics import padding
from oneflow_dist.planning.batches import picture_modality
from tools.benchmark.result import Measured, Series
from tools.benchmark.timing import synchronize

SHARD_SAMPLES = 1024  # of made-up shards
RATE, STAGES, MEMORY = "samples per second", "microseconds of a sample", "resident memory, MiB"
NOTE = (
    "One process, one thread, files in the page cache: `ours` is a lane of the loader from shards to packs on the "
    "device, in its shuffled order; its stages are timed while all of it runs. webdataset reads shards with as many "
    "samples in their order and decodes, and does nothing else. A sample that is drawn and left out counts in the "
    "stages, one that waits for a later pack does not count in the rate."
)


class StageClock:
    """Adds up the seconds and the calls of functions that call each other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, on the clock."""

        def call(*args: Any) -> Any:
            start = time.perf_counter()
            result = function(*args)
            self.seconds[name] += time.perf_counter() - start
            self.calls[name] += 1
            return result

        return call


def measure(config: Config, samples: int, rounds: int, device: torch.device) -> Measured:
    """So many samples in each round of each side, in turn."""
    torch.set_num_threads(1)
    config = replace(config, data=replace(config.data, cached_samples=0))  # else only the first round decodes
    lane = open_lane(config)
    paths = shards_with(lane, samples)
    count_webdataset(paths)  # fills the page cache
    lane.next_pack()  # fills the window
    clock = watch(lane)
    series: Series = {RATE: {"ours": [], "webdataset": []}, STAGES: {}, MEMORY: {"after a round": []}}
    total = Counts.zeros()
    for _ in range(rounds):
        start = time.perf_counter()
        series[RATE]["webdataset"].append(count_webdataset(paths) / (time.perf_counter() - start))
        start = time.perf_counter()
        counts, stages = time_stages(lane, clock, samples, device)
        series[RATE]["ours"].append(counts.sequences / (time.perf_counter() - start))
        for stage, seconds in stages.items():
            series[STAGES].setdefault(stage, []).append(1e6 * seconds)
        series[MEMORY]["after a round"].append(resident_mib())
        total += counts
    ratios = [ours / other for ours, other in zip(series[RATE]["ours"], series[RATE]["webdataset"], strict=True)]
    numbers = {"samples/s beside webdataset, median": float(np.median(ratios)), "padding share": padding(total)}
    return Measured(numbers={**numbers, "rows of a pack": config.data.rows_per_pack}, series=series, notes=[NOTE])


def open_lane(config: Config) -> Lane:
    """The lane that a data worker would run."""
    sources = load_mixture(config.data.mixture)
    shards = [open_shards(source.name, source.shards, source.index) for source in sources]
    return Lane(0, config, sources, shards, load_tokenizer(config.data.tokenizer, config.modality))


def watch(lane: Lane) -> StageClock:
    """A clock for the functions of this lane alone: their classes are as they were."""
    clock = StageClock()
    for stream in lane.streams:
        stream.shards.read = clock.timed("read", stream.shards.read)  # type: ignore[method-assign]
        stream.read = clock.timed("document", stream.read)
        stream.sample_at = clock.timed("sample", stream.sample_at)  # type: ignore[method-assign]
    lane.next_pack = clock.timed("pack", lane.next_pack)  # type: ignore[method-assign]
    return clock


def time_stages(
    lane: Lane, clock: StageClock, num_samples: int, device: torch.device
) -> tuple[Counts, dict[str, float]]:
    """Counts of as many packs as hold `num_samples`, and the seconds of each stage for a sample."""
    total = Counts.zeros()
    clock.seconds.clear()
    clock.calls.clear()

    def transfer(batch: PackedBatch) -> None:
        batch.to(device)
        synchronize(device)

    to_device = clock.timed("device", transfer)
    while total.sequences < num_samples:
        batch = lane.next_pack()
        to_device(batch)
        total += batch.counts
    seconds, drawn = clock.seconds, max(1, clock.calls["sample"])
    return total, {
        "read": seconds["read"] / drawn,
        "decode and tokenize": (seconds["document"] - seconds["read"]) / drawn,
        "make and noise": (seconds["sample"] - seconds["document"]) / drawn,
        "pack": (seconds["pack"] - seconds["sample"]) / total.sequences,
        "to the device": seconds["device"] / total.sequences,
    }


def shards_with(lane: Lane, num_samples: int) -> list[str]:
    """The first shards of all sources, in turn, until they hold so many samples; all, if they do not."""
    shards = [zip(stream.shards.paths, stream.shards.indexes, strict=True) for stream in lane.streams]
    chosen, total = [], 0
    for path, index in filter(None, itertools.chain(*itertools.zip_longest(*shards))):
        if total < num_samples:
            chosen.append(path)
            total += len(index)
    return chosen


def count_webdataset(paths: list[str]) -> int:
    """Samples of one pass of a plain pipeline that decodes them."""
    require("oneflow benchmark data", "experiments", "webdataset")
    import webdataset

    samples: Iterator[object] = iter(webdataset.WebDataset(paths, shardshuffle=False).decode("pil"))
    return sum(1 for _ in samples)


def resident_mib() -> float:
    """Memory that the process holds now, without pages of mapped files."""
    with Path("/proc/self/status").open() as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["RssAnon"].split()[0]) / 1024


def with_made_up_shards(config: Config, folder: Path, num_samples: int) -> Config:
    """The config on captioned latents of its shape, as oneflow precompute stores them, of random content."""
    modality = picture_modality(config)
    shape = (2, modality.channels, *modality.shape)  # mean and standard deviation
    rng = np.random.default_rng(0)
    header = {
        "autoencoder": {"scaling_factor": 1.5305, "shift_factor": 0.0609},
        "tokenizer": {"sha256": load_tokenizer("bytes").sha256},
    }
    for shard in range(-(-num_samples // SHARD_SAMPLES)):
        pax = {HEADER_KEY: json.dumps(header)}
        with tarfile.open(folder / f"{shard:06d}.tar", "w", pax_headers=pax) as tar:
            for number in range(SHARD_SAMPLES):
                caption = " ".join(["word"] * rng.integers(5, 40))
                posterior = np.stack([rng.standard_normal(shape[1:]), np.full(shape[1:], 0.1)]).astype(np.float16)
                files = {
                    "txt": caption.encode(),
                    "json": json.dumps({"width": 256, "height": 128}).encode(),
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
    return replace(config, data=replace(config.data, mixture=str(folder / "mixture.yaml"), tokenizer="bytes"))
