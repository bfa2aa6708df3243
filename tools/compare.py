"""Configs of several objectives compared on the same data, budget and seeds: tables, and a picture.

Each run is trained, judged by tools/digits/evaluate.py and bounded by oneflow bound; the budget is FLOPs, which are
counted, and not steps. The same command goes on where it was stopped. OUT gets comparison.md, .json and .png.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from oneflow_dist.extras import require
from oneflow_dist.files import naming
from oneflow_dist.runtime import run_program
from oneflow_dist.toml import check_range
from tools.comparison.plan import Contender, Run, count_flops, plan_runs, read_contenders


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, metavar="OUT", help="folder for runs and results")
    parser.add_argument("configs", nargs="+", type=Path, metavar="CONFIG", help="TOML files; the first sets the budget")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="of the runs (0 1 2)")
    parser.add_argument(
        "--shares", nargs="+", type=float, default=[0.25, 0.5, 1.0], help="of the budget, a run each (0.25 0.5 1)"
    )
    parser.add_argument(
        "--steps", type=int, default=0, help="of the first config, whose FLOPs are the budget (its train.steps)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores (%(default)s)")
    parser.add_argument("--samples", type=int, default=256, help="documents of each kind that are judged (%(default)s)")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        dest="settings",
        metavar="section.key=value",
        help="in every config",
    )
    args = parser.parse_args()
    require("oneflow compare", "evaluate", "matplotlib")  # which draws, hours later
    check(args)
    contenders = read_contenders(args.configs, args.settings)
    contenders = [with_flops(contender) for contender in contenders]
    runs = plan_runs(contenders, args.steps, args.shares, args.seeds, args.output)
    make(runs, args)


def check(args: argparse.Namespace) -> None:
    """Refuse numbers that no comparison can be made with.

    Raises:
        ValueError: names the argument.
    """
    check_range("--steps", args.steps, "[0, inf)")
    check_range("--jobs", args.jobs, "[1, inf)")
    check_range("--samples", args.samples, "[2, inf)")  # a distance needs two
    for share in args.shares:
        check_range("--shares", share, "(0, inf)")
    for seed in args.seeds:
        check_range("--seeds", seed, "[0, 2^63)")
    for name, values in (("--shares", args.shares), ("--seeds", args.seeds)):
        if len(set(values)) < len(values):
            raise ValueError(f"{name}: {' '.join(f'{value:g}' for value in values)}: one is there twice; leave it out")


def with_flops(contender: Contender) -> Contender:
    """The same, its steps counted."""
    flops = count_flops(contender.config)
    print(f"{contender.name}: {flops / 1e9:,.3f} GFLOP a step", flush=True)
    return dataclasses.replace(contender, flops_per_step=flops)


def make(runs: Sequence[Run], args: argparse.Namespace) -> None:
    """Make what is missing, measure how long steps take, and write the results."""
    from tools.comparison.pace import measure_pace
    from tools.comparison.runs import Maker, Processes, make_runs

    threads = max(1, len(os.sched_getaffinity(0)) // args.jobs)
    maker = Maker(samples=args.samples, threads=threads, processes=Processes())
    with naming(args.output):
        (args.output / "runs").mkdir(parents=True, exist_ok=True)
    make_runs(runs, maker, args.jobs)
    contenders = list({run.contender.name: run.contender for run in runs}.values())
    alone = dataclasses.replace(maker, threads=len(os.sched_getaffinity(0)))
    write(runs, measure_pace(contenders, args.output, alone.train), args)


def write(runs: Sequence[Run], pace: dict[str, float], args: argparse.Namespace) -> None:
    """The results of finished runs."""
    from tools.benchmark.machine import describe_machine
    from tools.comparison.drawing import draw
    from tools.comparison.figures import read_run
    from tools.comparison.means import gather
    from tools.comparison.report import Circumstances, to_json, write_markdown

    outcomes = gather([read_run(run, pace[run.contender.name]) for run in runs])
    made = Circumstances(
        command=shlex.join(["python", *sys.argv]),
        machine=describe_machine(commit=""),
        samples=args.samples,
    )
    seeds = len(outcomes[0].readings)
    with naming(args.output):
        (args.output / "comparison.json").write_text(json.dumps(to_json(outcomes, made), indent=2) + "\n")
        (args.output / "comparison.md").write_text(write_markdown(outcomes, made))
        draw(outcomes, f"{made.computer}; {args.samples} documents of each kind judged").savefig(
            args.output / "comparison.png"
        )
    print(f"wrote {args.output}/comparison.md, .json and .png of {seeds} seed{'s' * (seeds != 1)}", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, which stops the runs that are under way
    run_program(main)
