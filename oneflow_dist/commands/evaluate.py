"""Ask a checkpoint all questions of a suite, score its answers, and draw a page of them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from oneflow_dist.runtime import log, run_program
from oneflow_dist.toml import check_range

if TYPE_CHECKING:
    from oneflow_dist.evaluation.suite import Suite


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="Under torchrun, or started several times, on one machine or many with a common disk, processes share "
        "the work; whatever is killed, the same command goes on. The report is the same to the bit.",
    )
    parser.add_argument("run", type=Path, nargs="?", help="run folder (its last checkpoint), or a checkpoint's folder")
    parser.add_argument("--suite", type=Path, required=True, help="TOML file, as configs/suites/quickstart.toml")
    parser.add_argument("--output", type=Path, help="folder (RUN/evaluation/SUITE/step-N)")
    parser.add_argument("--limit", type=int, help="at most so many items of each task, for a quick look")
    parser.add_argument("--check", action="store_true", help="only tell which files are missing, and where they are")
    parser.add_argument("--answers-only", action="store_true", help="leave the report to oneflow score")
    parser.add_argument("--follow", type=float, metavar="SECONDS", help="look so often for a new checkpoint")
    args = parser.parse_args()
    if args.run is None and not args.check:
        parser.error("the following arguments are required: run")
    if args.follow is not None and args.output is not None:
        parser.error("argument --output: not allowed with argument --follow, where each checkpoint has a folder")
    if args.follow is not None:
        check_range("--follow", args.follow, "(0, inf)")
    if args.limit is not None:
        check_range("--limit", args.limit, "[1, inf)")
    from oneflow_dist.evaluation.suite import limit_suite, load_suite

    suite = load_suite(args.suite)
    if args.check:
        tell_missing(suite, args.suite)
        return
    if args.limit is not None:
        suite = limit_suite(suite, args.limit)
    rank, num_ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    # Only now, since it takes seconds: what is wrong on the command line has been answered by then.
    from oneflow_dist.commands.score import write_report
    from oneflow_dist.evaluation.following import checkpoints_of, folder_of, note_figures
    from oneflow_dist.evaluation.running import answer_suite

    for checkpoint in checkpoints_of(args.run, args.follow):
        folder = args.output or folder_of(args.run, args.suite.stem, checkpoint)
        log(f"{checkpoint}: answers to {args.suite} in {folder}")
        answer_suite(checkpoint, suite, folder, rank, num_ranks)
        if rank == 0 and not args.answers_only:
            report = write_report(suite, folder)
            if args.follow is not None:
                note_figures(args.run, args.suite.stem, report)


def tell_missing(suite: Suite, path: Path) -> None:
    """A line for each file that a suite lacks.

    Raises:
        ValueError: there is one.
    """
    from oneflow_dist.evaluation.checking import check_suite_files

    lines = check_suite_files(suite)
    for line in lines:
        print(line)
    if lines:
        raise ValueError(f"{path}: {len(lines)} things are missing, named above")
    print(f"{path}: everything is there")


if __name__ == "__main__":
    run_program(main)
