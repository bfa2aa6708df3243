"""What one GPU can tell about this project, the most worthy first: whenever it vanishes, what was measured is there."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from oneflow_dist.config import load_config
from oneflow_dist.measuring.jobs import Job, first_part, second_part
from oneflow_dist.measuring.lines import Notebook
from oneflow_dist.measuring.machine import describe_machine
from oneflow_dist.measuring.processes import Machine
from oneflow_dist.measuring.report import of_kind, plan_of
from oneflow_dist.measuring.schedule import Line, Schedule
from oneflow_dist.runtime import run_program


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("kernels/results"), help="folder of the result files")
    parser.add_argument("--second", action="store_true", help="the second part: launches, all with them, the rest")
    parser.add_argument("--minutes", type=float, default=8.5, help="for everything; what does not fit is left out")
    parser.add_argument("--config", default="configs/oneflow_1b.toml", help="what to train")
    parser.add_argument("--commit", default="", help="of this code, where its folder is a copy without git")
    parser.add_argument("--only", default="", metavar="TEXT", help="only jobs with this in their names")
    parser.add_argument("--draw", action="store_true", help="measure nothing: plan the memory, draw the pictures")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values are TOML")
    args = parser.parse_intermixed_args()
    data = load_config(args.config, args.overrides).data
    notebook = Notebook(args.output)
    if args.draw:
        plan(notebook, args.config, args.overrides)
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit as others, so that what runs is ended too
        part = second_part if args.second else first_part
        jobs = [job for job in part(data.rows_per_pack, data.max_sample_rows) if args.only in job.name]
        shared = {"config": args.config, "overrides": args.overrides, "folder": str(args.output)}
        measure_all(jobs, shared, notebook, 60.0 * args.minutes, args.commit)
    draw(notebook)


def measure_all(jobs: list[Job], shared: dict[str, Any], notebook: Notebook, seconds: float, commit: str) -> None:
    """Run the jobs; each number is in the notebook as soon as there is one."""
    start = time.monotonic()

    def tell(line: Line) -> None:
        notebook.add({"at": round(time.monotonic() - start, 2), **line})
        print(in_short(notebook.lines[-1]), flush=True)

    tell({"kind": "machine", **describe_machine(commit), **shared})
    there = [job for job in jobs if not job.needs or find_spec(job.needs) or shutil.which(job.needs)]
    for job in jobs:
        if job not in there:
            tell({"job": job.name, "kind": "end", "status": "skipped", "reason": f"{job.needs} is not installed"})
    processes = max(1, (os.cpu_count() or 1) // 2)
    machine = Machine(shared, processes, notebook.folder / "log.txt")
    Schedule(there, machine, tell, processes, seconds - (time.monotonic() - start)).run()


def in_short(line: Line) -> str:
    """A line for who watches."""
    name = str(line.get("name", line.get("kernel", "")))
    numbers = [
        f"{key} {line[key]:.4g}"
        for key in ("rows_per_second", "tflops", "gb_per_second", "ms", "error")
        if line.get(key)
    ]
    words = [str(line[key]) for key in ("status", "reason", "failed") if line.get(key)]
    return f"{line['at']:7.1f} s  {line['kind']:<10}{line.get('job', '')}: {' '.join([name, *numbers, *words])}"


def plan(notebook: Notebook, config: str, overrides: list[str]) -> None:
    """The memory of our variants that were measured, as planned; minutes of work for a processor."""
    from oneflow_dist.planning.gpus import GIB
    from oneflow_dist.planning.trace import trace_step

    planned = {line["name"] for line in of_kind(notebook.lines, "plan")}
    variants = {plan_of(line["name"]) for line in of_kind(notebook.lines, "step") if line["name"].startswith("ours")}
    for name in sorted(variants - planned):
        _, precision, checkpointing = name.split()
        ways = (
            f"train.precision={precision}",
            f"train.activation_checkpointing={checkpointing}",
            "data.packs_per_step=1",
        )
        peak = trace_step(load_config(config, [*overrides, *ways]), 1).peak
        sizes = {kind: size / GIB for kind, size in peak.items()}
        notebook.add({"kind": "plan", "name": name, "peak_gib": sum(sizes.values()), "by_kind": sizes})


def draw(notebook: Notebook) -> None:
    """Pictures beside the numbers."""
    from oneflow_dist.measuring.drawing import draw as draw_pictures  # here: it takes a second to import

    draw_pictures(notebook.lines, notebook.folder)
    print(f"wrote {notebook.folder}")


if __name__ == "__main__":
    run_program(main)
