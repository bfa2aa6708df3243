"""What one GPU can tell about this project, the most worthy first: whenever it vanishes, what was measured is there."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from oneflow_dist.config import load_config
from oneflow_dist.runtime import run_program
from tools.benchmark.jobs import jobs_of
from tools.benchmark.lines import Notebook
from tools.benchmark.report import of_kind
from tools.benchmark.run import draw, measure_all, plan, wrong_checks


def main() -> None:
    """Entry point; code 1 if a kernel's numbers are wrong on this device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("kernels/results"), help="folder of the result files")
    parser.set_defaults(part="first")
    parts = parser.add_mutually_exclusive_group()
    for name, text in (
        ("second", "the second part: launches, all with them, the rest"),
        ("kernels", "only kernels: launches, numbers, contests"),
        ("check", "only the kernels' numbers, against float64"),
        ("draw", "measure nothing: plan the memory, draw the pictures"),
    ):
        parts.add_argument(f"--{name}", action="store_const", dest="part", const=name, help=text)
    parser.add_argument("--minutes", type=float, default=8.5, help="for everything; what does not fit is left out")
    parser.add_argument("--config", default="configs/oneflow_1b.toml", help="what to train")
    parser.add_argument("--commit", default="", help="of this code, where its folder is a copy without git")
    parser.add_argument("--only", default="", metavar="TEXT", help="only jobs with this in their names")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values are TOML")
    args = parser.parse_intermixed_args()
    data = load_config(args.config, args.overrides).data
    notebook = Notebook(args.output)
    measured_before = len(notebook.lines)
    if args.part == "draw":
        plan(notebook, args.config, args.overrides)
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit as others, so that what runs is ended too
        jobs = [job for job in jobs_of(args.part, data.rows_per_pack, data.max_sample_rows) if args.only in job.name]
        shared = {"config": args.config, "overrides": args.overrides, "folder": str(args.output)}
        measure_all(jobs, shared, notebook, 60.0 * args.minutes, args.commit)
    draw(notebook)
    wrong = wrong_checks(notebook.lines[measured_before:])
    for name in wrong:
        print(f"error: {name}: more than twice the error of the definition, or not the same twice", file=sys.stderr)
    sys.exit(bool(wrong) or (args.part == "check" and not of_kind(notebook.lines[measured_before:], "check")))


if __name__ == "__main__":
    run_program(main)
