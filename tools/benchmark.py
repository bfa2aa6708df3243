"""Benchmarks: our kernels and their peers on the same inputs, in one run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from measure_gpu import draw, measure_all
from oneflow_dist.measuring.jobs import kernel_jobs
from oneflow_dist.measuring.lines import Notebook
from oneflow_dist.measuring.report import of_kind
from oneflow_dist.runtime import run_program


def main() -> None:
    """Entry point: `benchmark.py kernels`; with --check, code 1 if a kernel's numbers are wrong on this device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["kernels"])
    parser.add_argument("--check", action="store_true", help="the kernels' numbers only, against float64")
    parser.add_argument("--only", default="", metavar="TEXT", help="only jobs with this in their names")
    parser.add_argument("--minutes", type=float, default=20.0, help="for everything; what does not fit is left out")
    parser.add_argument("--output", type=Path, default=Path("kernels/results"), help="folder of the result files")
    parser.add_argument("--commit", default="", help="of this code, where its folder is a copy without git")
    args = parser.parse_args()
    launches, checks, contests = kernel_jobs()
    jobs = [job for job in (checks if args.check else [*launches, *checks, *contests]) if args.only in job.name]
    notebook = Notebook(args.output)
    shared = {"config": "configs/oneflow_1b.toml", "overrides": [], "folder": str(args.output)}
    found = len(notebook.lines)
    measure_all(jobs, shared, notebook, 60.0 * args.minutes, args.commit)
    draw(notebook)
    checked = of_kind(notebook.lines[found:], "check")
    wrong = [f"{check['name']}, {check['dtype']}" for check in checked if not check["is_right"]]
    for name in wrong:
        print(f"error: {name}: more than twice the error of the definition, or not the same twice", file=sys.stderr)
    sys.exit(bool(wrong) or (args.check and not checked))


if __name__ == "__main__":
    run_program(main)
