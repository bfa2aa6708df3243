"""Measure what a model of digits writes, and draw it: report.json and gallery.png in the run folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from oneflow_dist.commands.sample import add_sampling, check_sampling
from oneflow_dist.runtime import run_program
from oneflow_dist.toml import check_range


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="run folder with a checkpoint, as runs/quickstart")
    parser.add_argument("--samples", type=int, default=256, help="documents of each kind (%(default)s)")
    add_sampling(parser)
    args = parser.parse_args()
    check_range("--samples", args.samples, "[2, inf)")  # a distance needs two
    check_sampling(args)
    # Only now, since it takes seconds: what is wrong on the command line has been answered by then.
    from tools.digits.judging import evaluate

    evaluate(args)


if __name__ == "__main__":
    run_program(main)
