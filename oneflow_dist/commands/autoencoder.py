"""Train a small image autoencoder of SD3's architecture on WebDataset shards, from scratch."""

from __future__ import annotations

import argparse
from pathlib import Path

from oneflow_dist.config import RANGES
from oneflow_dist.runtime import run_program
from oneflow_dist.toml import check_range


def main() -> None:
    """Entry point."""
    args = parse_arguments()
    # Only now, since it takes seconds: what is wrong on the command line has been answered by then.
    from oneflow_dist.commands.autoencoder_training import make_autoencoder
    from oneflow_dist.signals import StopSignals

    signals = StopSignals()
    signals.listen()
    make_autoencoder(args, signals)


def parse_arguments() -> argparse.Namespace:
    """The command line; what cannot work is refused here, before any work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the autoencoder goes; it must not exist")
    parser.add_argument("shards", nargs="+", help="brace or wildcard patterns of the training shards")
    parser.add_argument("--val", nargs="+", default=[], help="shards to measure on; without, a tenth is held out")
    parser.add_argument("--size", type=int, default=64, help="height and width of training crops, in pixels")
    parser.add_argument("--val-size", type=int, nargs="+", help="sizes of the crops to measure on (default: --size)")
    parser.add_argument("--channels", type=int, default=16, help="of a latent")
    parser.add_argument("--widths", type=_read_widths, default="16,16,32,64", help="channels of each level")
    parser.add_argument("--layers", type=int, default=1, help="residual blocks of each level; SD3 has 2")
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=4, help="images of a step")
    parser.add_argument("--lr", type=float, default=1.5e-3, help="the highest, after the warm-up")
    parser.add_argument(
        "--kl-weight", type=float, default=1e-4, help="of the KL divergence of a latent element, in nats"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.val_size = args.val_size or [args.size]
    if args.folder.exists():
        raise ValueError(f"{args.folder} exists; name a new folder or remove it")
    ranges = {**dict.fromkeys(("size", "channels", "layers", "steps", "batch"), "[1, inf)"), "lr": "(0, inf)"}
    for name, interval in {**ranges, "kl_weight": "[0, inf)", "seed": RANGES["run"]["seed"]}.items():
        check_range(f"--{name.replace('_', '-')}", getattr(args, name), interval)
    downsample = 2 ** (len(args.widths) - 1)
    for size in (args.size, *args.val_size):
        if size <= 0 or size % downsample:
            raise ValueError(
                f"size {size}: must be a multiple of {downsample}, what {len(args.widths)} levels divide by"
            )
    return args


def _read_widths(text: str) -> list[int]:
    widths = [int(part) for part in text.split(",")]
    if any(width <= 0 or width % 4 for width in widths):
        raise argparse.ArgumentTypeError(f"{text}: widths must be positive multiples of 4")
    return widths


if __name__ == "__main__":
    run_program(main)
