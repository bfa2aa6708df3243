"""Write a checkpoint as a folder for others: weights, config, tokenizer, autoencoder and a model card.

    oneflow export runs/mine mine                           for this package, and for init.path
    oneflow export runs/mine mine --format transformers     loads with torch and transformers alone, and writes
    oneflow export runs/mine mine --format diffusers        a pipeline of diffusers: pictures from text

Where its objective looks back, transformers reads the first as a Llama.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

from oneflow_dist.runtime import run_program


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("checkpoint", type=Path, help="run folder (its last checkpoint), or one checkpoint's folder")
    add("output", type=Path, help="folder to make")
    add(
        "--format",
        choices=("oneflow", "transformers", "diffusers"),
        default="oneflow",
        help="who is to load it (%(default)s)",
    )
    add("--weights", choices=("ema", "model"), default="ema", help="averaged, or as last trained (%(default)s)")
    add("--dtype", choices=("bf16", "fp32"), default="bf16", help="of the weights (%(default)s)")
    add("--licence", metavar="NAME", default="", help="of the weights, for the card, as Apache-2.0")
    add(
        "--about",
        type=Path,
        metavar="FILE",
        help="Markdown with which the card begins: what it is, its data, its limits",
    )
    add("--without-autoencoder", action="store_true", help="leave its files out; the folder names it by its hash")
    args = parser.parse_args()
    # Only now, since it takes seconds: what is wrong on the command line has been answered by then.
    import torch

    from oneflow_dist.exporting.folder import Options, export
    from oneflow_dist.trained import find_checkpoint

    warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # one process, as it should
    options = Options(
        format=args.format,
        weights=args.weights,
        dtype={"bf16": torch.bfloat16, "fp32": torch.float32}[args.dtype],
        licence=args.licence,
        about=args.about,
        copies_autoencoder=not args.without_autoencoder,
    )
    checkpoint = find_checkpoint(args.checkpoint)
    print(export(checkpoint, args.output, options, run=args.checkpoint))


if __name__ == "__main__":
    run_program(main)
