"""What is claimed of the method, tested: trains and measures what is missing, and writes tables, a plot and a page.

Stopped, the same command goes on; any number of machines that share --runs may be given it, and each takes what the
others have left. Experiments are files in configs/experiments; "all" is all of them.
"""

from __future__ import annotations

import argparse
import importlib
import os
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path

from oneflow_dist.extras import require
from oneflow_dist.files import naming
from oneflow_dist.runtime import run_program
from oneflow_dist.toml import check_range
from tools.experiments.plan import Task, plan_tasks
from tools.experiments.reading import SCALES, Experiment, at_scale, known_experiments, load_experiment

PAGES = "docs/experiments"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="+", metavar="NAME", help=f"{', '.join(known_experiments())}, all, or a TOML file"
    )
    parser.add_argument("--scale", choices=SCALES, default="cpu", help="of models and data (%(default)s)")
    parser.add_argument("--plan", action="store_true", help="train nothing: what every arm takes on H100s, as a page")
    parser.add_argument("--slurm", action="store_true", help="trainings on H100s are jobs, which are waited for")
    parser.add_argument("--seeds", type=int, default=3, help="of each arm (%(default)s)")
    parser.add_argument("--jobs", type=int, default=0, help="programs at a time, which share the cores (one a core)")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/experiments"), help="for runs and measurements (%(default)s)"
    )
    parser.add_argument("--output", type=Path, default=Path(PAGES), help="for pages (%(default)s)")
    parser.add_argument(
        "--with", type=Path, metavar="FOLDER", dest="others", help="of results that are taken as they are, if they fit"
    )
    parser.add_argument(
        "--against", type=Path, metavar="FOLDER", help="of other results: tell which numbers lie outside their ranges"
    )
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, which stops what is under way
    require("oneflow experiment", "evaluate", "matplotlib")
    check_range("--seeds", args.seeds, "[1, inf)")
    check_range("--jobs", args.jobs, "[0, inf)")
    names = known_experiments() if args.names == ["all"] else args.names
    experiments = {name: load_experiment(name) for name in names}
    if args.plan:
        from tools.experiments.clusters import write_plans

        write_plans(experiments, args.output)
        return
    make({name: at_scale(own, args.scale) for name, own in experiments.items()}, args)


def make(experiments: dict[str, Experiment], args: argparse.Namespace) -> None:
    """Do what is missing, then write the results of each.

    Raises:
        ValueError: nothing is to be measured, or cannot be.
    """
    from tools.experiments.work import Programs, Worker, do_all, make_data

    cores = len(os.sched_getaffinity(0))
    jobs = args.jobs or cores
    tasks = [
        task for task in plan_tasks(experiments, args.scale, args.seeds, args.runs.absolute()) if is_possible(task)
    ]
    asked = {task.experiment.name for task in tasks}
    for name, own in experiments.items():
        if own.name not in asked:
            print(f"{name}: left out, since there is nothing to measure at --scale {args.scale}", flush=True)
    experiments = {name: own for name, own in experiments.items() if own.name in asked}
    if not experiments:
        where = f"oneflow experiment {' '.join(args.names)}: has nothing to measure at --scale {args.scale}"
        raise ValueError(f"{where}; take another scale, other names, or bring the data that the lines above name")
    if args.others is not None:
        take_in_all(experiments.values(), args.others, args.runs.absolute())
    programs = Programs(max(1, cores // jobs))
    make_data(experiments.values(), programs, args.runs.absolute())
    do_all(tasks, Worker(programs, args.slurm), jobs)
    for experiment in experiments.values():
        write(experiment, tasks, args.output)
    if args.scale == "cpu":
        write_claims(args.output)
    if args.against is not None:
        tell_differences(experiments.values(), tasks, args.against)


def take_in_all(experiments: Iterable[Experiment], folder: Path, runs: Path) -> None:
    """Take measurements that others have made, of the same arms and probes; others are made anew."""
    from tools.experiments.results import take_in

    count = sum(take_in(experiment, folder, runs) for experiment in experiments)
    print(f"took {count} measurements of {folder}", flush=True)


def is_possible(task: Task) -> bool:
    """Whether its data can be made; else says what is missing."""
    from tools.experiments.work import can_be_made

    own = task.experiment.arm[task.arm].data
    if not own or own not in task.experiment.data or can_be_made(task.experiment.data[own]):
        return True
    print(f"{task.name}: left out, since {task.experiment.data[own].needs} is not there", flush=True)
    return False


def write(experiment: Experiment, tasks: Sequence[Task], output: Path) -> None:
    """The page, its picture, and the numbers as CSV and as they were measured."""
    from tools.experiments.drawing import draw
    from tools.experiments.report import write_csv, write_page
    from tools.experiments.results import read_results, results_path, save_results

    results, extra, picture = read_results(experiment, tasks), "", draw
    if experiment.analysis:
        analysis = importlib.import_module(f"tools.experiments.analyses.{experiment.analysis}")
        extra, picture = analysis.write_section(results), getattr(analysis, "draw", draw)
    path = results_path(output, experiment.name)
    output.mkdir(parents=True, exist_ok=True)
    with naming(output):
        picture(results).savefig(output / f"{experiment.name}.png", dpi=110)
        (output / f"{experiment.name}.csv").write_text(write_csv(results))
        (output / f"{experiment.name}.md").write_text(write_page(results, extra))
        save_results(results, path)
    print(f"wrote {output / experiment.name}.md, .png, .csv and {path}", flush=True)


def write_claims(output: Path) -> None:
    """The page of all claims, of every experiment that has results there."""
    from tools.experiments.index import write_index

    experiments = {name: load_experiment(name) for name in known_experiments()}
    (output / "README.md").write_text(write_index(experiments, output))


def tell_differences(experiments: Iterable[Experiment], tasks: Sequence[Task], folder: Path) -> None:
    """Print which numbers are not found again."""
    from tools.experiments.report import compare
    from tools.experiments.results import load_results, read_results, results_path

    total = outside = 0
    for experiment in experiments:
        old = load_results(experiment, results_path(folder, experiment.name))
        count, lines = compare(read_results(experiment, tasks), old)
        total, outside = total + count, outside + len(lines)
        for line in lines:
            print(line)
    print(f"{total - outside} of {total} numbers lie within the ranges of {folder}", flush=True)


if __name__ == "__main__":
    run_program(main)
