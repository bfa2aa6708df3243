"""Benchmarks: our kernels and their peers on the same inputs, in one run."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from measure_gpu import measure_all
from oneflow_dist.measuring.jobs import Settings, kernel_jobs
from oneflow_dist.runtime import run_program


def main() -> None:
    """Entry point: `benchmark.py kernels`; with --check, code 1 if a kernel's numbers are wrong on this device."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["kernels"])
    parser.add_argument("--check", action="store_true", help="the kernels' numbers only, against float64")
    parser.add_argument("--only", default="", metavar="TEXT", help="only contests whose names contain this")
    parser.add_argument("--minutes", type=float, default=20.0, help="for everything; what does not fit is skipped")
    parser.add_argument("--output", type=Path, default=Path("kernels/results"), help="folder for the result files")
    parser.add_argument("--commit", default="", help="of this code, where its folder is a copy without git")
    args = parser.parse_args()
    start = time.monotonic()
    tuning, kernels, *contests = kernel_jobs()
    jobs = [kernels] if args.check else [tuning, kernels, *(job for job in contests if args.only in job.name)]
    settings = Settings(config="configs/debug.toml", overrides=(), steps=0)
    path = measure_all(jobs, settings, start + 60.0 * args.minutes, args.output, args.commit)
    result = json.loads(path.read_text())
    print(f"wrote {path}, and beside it all else of that name")
    checks = result["kernels"]["checks"] if result["kernels"] else []
    wrong = [f"{check['name']}, {check['dtype']}" for check in checks if not check["is_right"]]
    for name in wrong:
        print(f"error: {name}: more than twice the error of the definition, or not the same twice", file=sys.stderr)
    sys.exit(bool(wrong) or not checks)


if __name__ == "__main__":
    run_program(main)
