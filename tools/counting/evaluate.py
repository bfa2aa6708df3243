"""Measure how a model of long counting documents edits and writes them, and draw it: counting.json and counting.png."""

from __future__ import annotations

import argparse
from pathlib import Path

from oneflow_dist.commands.sample import add_sampling, check_sampling
from oneflow_dist.runtime import run_program
from oneflow_dist.toml import check_range


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="run folder with a checkpoint, as runs/counting")
    parser.add_argument("--samples", type=int, default=256, help="documents of each kind (%(default)s)")
    parser.add_argument("--longest", type=int, default=30, help="images of the longest document (%(default)s)")
    add_sampling(parser)
    args = parser.parse_args()
    check_range("--samples", args.samples, "[1, inf)")
    check_range("--longest", args.longest, "[1, inf)")
    check_sampling(args)
    # Only now, since it takes seconds: what is wrong on the command line has been answered by then.
    from tools.counting.judging import evaluate

    evaluate(args)


if __name__ == "__main__":
    run_program(main)
