"""Measure what a model of digits writes, and draw it: report.json and gallery.png in the run folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from oneflow_dist.config import RANGES
from oneflow_dist.runtime import run_program
from oneflow_dist.toml import check_range
from tools.sample import read_weights


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="run folder with a checkpoint, as runs/quickstart")
    parser.add_argument("--samples", type=int, default=256, help="documents of each kind")
    parser.add_argument("--steps", type=int, help="sampler steps; default: sampling.steps of the run")
    parser.add_argument(
        "--guidance", action="append", default=[], metavar="NAME=WEIGHT", help="as image=3; default: that of the run"
    )
    args = parser.parse_args()
    check_range("--samples", args.samples, "[1, inf)")
    if args.steps is not None:
        check_range("--steps", args.steps, RANGES["sampling"]["steps"])
    weights = read_weights(args.guidance)
    # Only now, since it takes seconds: what is wrong on the command line has been answered by then.
    from tools.digits.judging import evaluate

    evaluate(args.folder, args.samples, args.steps, weights)


if __name__ == "__main__":
    run_program(main)
