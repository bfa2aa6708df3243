"""A folder of your pictures and texts becomes data and a config to train on.

    oneflow prepare photos data/photos            any usual layout: docs/prepare.md has them
    oneflow train data/photos/config.toml
    oneflow sample runs/photos samples --text "a red kite" --paint --count 4

The same command again goes on where a killed one stopped, with the same bytes in the end.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from oneflow_dist.runtime import run_program


def main() -> None:
    """Entry point."""
    args = _parse()
    # Only now, since it takes a while: what is wrong on the command line has been answered by then.
    from oneflow_dist.prepare.recipe import CONFIG
    from oneflow_dist.prepare.run import prepare
    from oneflow_dist.prepare.settings import Options

    args.name = args.name or args.output.absolute().name
    print(prepare(Options(**vars(args))))
    print(f"next: oneflow train {args.output / CONFIG}", flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("source", type=Path, help="your folder")
    add("output", type=Path, help="folder for what is made of it, new or begun by this command")
    add("--size", type=int, default=32, help="pictures get about SIZE x SIZE pixels (%(default)s)")
    add("--max-aspect", type=float, default=1.0, help="of the longest picture; 1: squares only (%(default)s)")
    add("--autoencoder", metavar="FOLDER", help="train on the latents of this one (on pixels)")
    add("--tokenizer", metavar="FILE", help="a tiktoken ranks file (one is learned from the texts)")
    add("--vocab-size", type=int, metavar="N", help="of the tokenizer that is learned (512 to 4096, by the texts)")
    add("--held-out", type=float, default=0.05, metavar="SHARE", help="of the samples, for validation (%(default)s)")
    add("--drop-duplicates", action="store_true", help="of pictures near to each other only the first by name is kept")
    add(
        "--captions",
        default="beside",
        help="beside, files or folders: whose names are captions where no text lies beside",
    )
    add("--layout", metavar="NAME", help="of the folder, where it fits several")
    add("--workers", type=int, default=_cores(), metavar="N", help="processes that read pictures (%(default)s)")
    add("--seed", type=int, default=0, help="of the split and of training (%(default)s)")
    add("--name", help="of the run, whose folder is runs/NAME (the last part of the output's)")
    return parser.parse_args()


def _cores() -> int:
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    run_program(main)
