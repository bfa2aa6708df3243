"""One HTML page about one run or several: curves, samples, config, machines, cost; nothing else is needed to read it.

It reads run folders alone, so it may run beside a training, and opens without a network.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from oneflow_dist.files import write_whole
from oneflow_dist.runtime import run_program

LEAST_PAUSE = 9.0  # times what a page takes to make, so that watching takes no more than a tenth of a core
LAST_LOOKS = 2  # in a row that find no run going: launch/ starts a run that has died again within seconds


def main() -> None:
    """Entry point."""
    args = parse_arguments()
    output = args.output or args.runs[0] / "report.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    if args.watch:
        watch(args.runs, output, args.every, args.price)
    else:
        write_page(args.runs, output, None, args.price)


def parse_arguments() -> argparse.Namespace:
    """The command line; numbers out of their ranges are refused here."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run folders; several are laid over each other"
    )
    parser.add_argument("--output", type=Path, help="the page; report.html in the first run's folder by default")
    parser.add_argument("--price", type=float, help="of an hour of a device; without it no costs in money are shown")
    parser.add_argument("--watch", action="store_true", help="write it anew while a run goes on; it loads itself again")
    parser.add_argument("--every", type=float, default=10.0, help="seconds between two pages of --watch (10)")
    args = parser.parse_args()
    if args.every <= 0.0:
        raise ValueError(f"--every: {args.every}: give seconds, more than 0")
    if args.price is not None and args.price < 0.0:
        raise ValueError(f"--price: {args.price}: give what an hour costs, 0 or more")
    return args


def watch(runs: Sequence[Path], output: Path, every: float, price: float | None) -> None:
    """Write the page until no run goes on."""
    num_ended = 0
    while num_ended < LAST_LOOKS:
        begin = time.perf_counter()
        num_ended = 0 if write_page(runs, output, every, price) else num_ended + 1
        if num_ended < LAST_LOOKS:
            time.sleep(max(every, LEAST_PAUSE * (time.perf_counter() - begin)))
    write_page(runs, output, None, price)
    print("no run goes on: this was the last page")


def write_page(runs: Sequence[Path], output: Path, every: float | None, price: float | None) -> bool:
    """Write it once; returns whether a run goes on."""
    from oneflow_dist.reporting.page import render_runs
    from oneflow_dist.reporting.runs import read_runs

    read = read_runs(runs)
    content = render_runs(read, every, price).encode()
    write_whole(output, content)
    said = ", ".join(f"{run.name} {run.status.state} at step {run.last_step}" for run in read)
    print(f"wrote {output} ({len(content) / 2**20:.1f} MiB): {said}", flush=True)
    return any(run.status.is_going for run in read)


if __name__ == "__main__":
    run_program(main)
