"""Make packs as a run would, train nothing, and tell how full they are and how fast they come."""

from __future__ import annotations

import argparse
import time

import torch
from tqdm import tqdm

from oneflow_dist.config import load_config
from oneflow_dist.containers import Counts
from oneflow_dist.data.loader import PackLoader
from oneflow_dist.metrics import padding
from oneflow_dist.runtime import run_program


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="TOML file, as configs/quickstart.toml")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    parser.add_argument("--steps", type=int, default=50)
    args = parser.parse_intermixed_args()
    config = load_config(args.config, args.overrides)
    loader = PackLoader(config, rank=0, world_size=1)
    total = Counts.zeros()
    start = time.perf_counter()
    for _ in tqdm(range(args.steps), unit="step"):
        total = sum((batch.counts for batch in loader.next_step(torch.device("cpu"))), total)
    seconds = time.perf_counter() - start
    packs = args.steps * config.data.packs_per_step
    print(f"{packs} packs of {config.data.rows_per_pack} rows: padding {padding(total):.2%}")
    print(f"{total.sequences / packs:.1f} samples a pack, {total.rows / total.sequences:.1f} rows a sample")
    print(f"{total.sequences / seconds:.0f} samples/s, {total.rows / seconds:.0f} rows/s")


if __name__ == "__main__":
    run_program(main)
