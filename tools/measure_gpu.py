"""What one GPU can tell about this project, the most worthy first: whenever it vanishes, what was measured is there."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from oneflow_dist.runtime import run_program
from tools.benchmark.lines import Notebook
from tools.benchmark.run import draw, measure_part, plan


def main() -> None:
    """Entry point; code 1 if a kernel's numbers are wrong on this device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("kernels/results"), help="folder of the result files")
    parser.set_defaults(part="first")
    parts = parser.add_mutually_exclusive_group()
    for name, text in (
        ("second", "the second part: launches, all with them, the rest"),
        ("draw", "measure nothing: plan the memory, draw the pictures"),
    ):
        parts.add_argument(f"--{name}", action="store_const", dest="part", const=name, help=text)
    parser.add_argument("--minutes", type=float, default=8.5, help="for everything; what does not fit is left out")
    parser.add_argument("--config", default="configs/oneflow_1b.toml", help="what to train")
    parser.add_argument("--commit", default="", help="of this code, where its folder is a copy without git")
    parser.add_argument("--only", default="", metavar="TEXT", help="only jobs with this in their names")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values are TOML")
    args = parser.parse_intermixed_args()
    if args.part == "draw":
        notebook = Notebook(args.output)
        plan(notebook, args.config, args.overrides)
        draw(notebook)
        return
    sys.exit(measure_part(args.part, args.config, args.overrides, args.output, args.minutes, args.commit, args.only))


if __name__ == "__main__":
    run_program(main)
