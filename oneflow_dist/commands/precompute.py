"""Encode the pictures of WebDataset shards to latents and their text to tokens, once, before training.

    oneflow precompute 'raw/*.tar' latents --autoencoder models/vae --tokenizer words.tiktoken
    torchrun --nproc-per-node 8 -m oneflow_dist.commands.precompute ...     eight at once, as are separate starts
    oneflow precompute latents --check              is the output whole?

The same command again goes on where a killed one stopped, with the same bytes in the end.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from oneflow_dist.runtime import run_program

if TYPE_CHECKING:
    from oneflow_dist.precompute.estimate import Estimate
    from oneflow_dist.precompute.settings import Options


def main() -> None:
    """Entry point."""
    args = _parse()
    # Only now, since it takes seconds: what is wrong on the command line has been answered by then.
    from oneflow_dist.precompute.estimate import estimate
    from oneflow_dist.precompute.run import Precompute
    from oneflow_dist.precompute.settings import load_tools
    from oneflow_dist.precompute.source import list_raw

    args.device = args.device or _device()
    if args.check:
        _check(args)
        return
    tools, shards = load_tools(_options(args)), list_raw(args.shards)
    if args.dry_run:
        _print_estimate(estimate(tools, shards))
    else:
        work = Precompute(tools, shards, args.output, args.max_bad, args.decode_threads)
        print(json.dumps(work.run().describe()), flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("shards", nargs="*", help="tars, with {000..999} and wildcards; none with --check")
    add("output", type=Path, help="folder for the latent shards, made if need be")
    add("--autoencoder", help='folder with a saved diffusers AutoencoderKL, or "pixels"')
    add("--tokenizer", help='tiktoken ranks file, or "bytes"')
    add(
        "--features", metavar="FOLDER", help='also store what this SigLIP sees in each picture, or "efficientnet-lite0"'
    )
    add("--mirror", action="store_true", help="also store the latent of each picture flipped left to right")
    add("--size", type=int, default=256, help="pictures get about SIZE x SIZE pixels (%(default)s)")
    add("--multiple-of", type=int, help="of height and width (twice the autoencoder's downsampling)")
    add("--max-aspect", type=float, default=2.0, help="of the longest bucket; 1: squares only (%(default)s)")
    add("--dtype", choices=("float16", "float32"), default="float16", help="of what is stored (%(default)s)")
    add("--compute-dtype", choices=("bfloat16", "float32"), default="float32", help="of the networks (%(default)s)")
    add("--batch-size", type=int, default=32, help="images of one size encoded together (%(default)s)")
    add("--threads", type=int, default=1, help="of the network on a CPU: part of the settings, since they round (1)")
    add("--decode-threads", type=int, default=_spare_cores(), help="that prepare pictures (%(default)s)")
    add("--device", help="as cuda:0 (a GPU where there is one, one for each rank; else cpu)")
    add("--allow-missing-text", action="store_true", help="pictures without a caption are good samples")
    add("--allow-missing-picture", action="store_true", help="captions without a picture are good samples")
    add("--max-bad", type=float, default=0.1, help="part of a shard's samples that may be bad (%(default)s)")
    add("--dry-run", action="store_true", help="count, measure the networks, tell size and hours, and write nothing")
    add("--check", action="store_true", help="read a complete output again; with --autoencoder, decode a few latents")
    return parser.parse_intermixed_args()


def _options(args: argparse.Namespace) -> Options:
    from oneflow_dist.precompute.settings import Options

    for name in ("autoencoder", "tokenizer"):
        if getattr(args, name) is None:
            raise ValueError(f"--{name}: missing; name one, see --help")
    return Options(**{name: getattr(args, name) for name in Options.__dataclass_fields__})


def _print_estimate(cost: Estimate) -> None:
    from oneflow_dist.precompute.settings import world

    num_devices = world()[2]
    print(f"input   {cost.shards} shards, {cost.samples} samples, {cost.images} images, {cost.num_bytes / 1e9:.3f} GB")
    print(f"output  about {cost.output_bytes / 1e9:.3f} GB")
    print(f"rate    {cost.images_per_second:.1f} images/s on one device, the networks alone")
    print(f"time    {cost.hours(1):.2f} hours on one device, {cost.hours(num_devices):.2f} on {num_devices}")


def _check(args: argparse.Namespace) -> None:
    import torch

    from oneflow_dist.model.autoencoder import load_autoencoder
    from oneflow_dist.precompute.verify import check_output

    if args.shards:
        raise ValueError(
            f"--check: takes one output folder, but {len(args.shards) + 1} paths are named; name that folder"
        )
    autoencoder = load_autoencoder(args.autoencoder, args.device, torch.float32) if args.autoencoder else None
    verdicts = check_output(args.output, autoencoder)
    width = max((len(verdict.name) for verdict in verdicts), default=5)
    print(f"{'shard':<{width}}  samples   images        MB  |latent|  verdict")
    for one in verdicts:
        numbers = f"{one.samples:8} {one.images:8} {one.num_bytes / 1e6:9.2f} {one.largest:9.2f}"
        print(f"{one.name:<{width}} {numbers}  {one.problem or 'good'}", flush=True)
    bad = [f"{one.name} ({one.problem})" for one in verdicts if one.problem]
    if bad:
        raise ValueError(
            f"{args.output}: {len(bad)} of {len(verdicts)} shards are bad: {'; '.join(bad)}; move each of these tars "
            f"out of the folder and run the command that wrote them again"
        )


def _spare_cores() -> int:
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1)


def _device() -> str:
    import torch

    from oneflow_dist.precompute.settings import world

    return f"cuda:{world()[1] % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    run_program(main)
