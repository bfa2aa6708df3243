"""All jobs of a part, from the first to the report and its pictures."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oneflow_dist.config import load_config
from tools.benchmark.jobs import Job, jobs_of
from tools.benchmark.lines import Notebook
from tools.benchmark.machine import describe_machine
from tools.benchmark.processes import Machine
from tools.benchmark.report import Line, of_kind, plan_of
from tools.benchmark.schedule import Schedule


def measure_part(
    part: str, config: str, overrides: list[str], output: Path, minutes: float, commit: str, only: str
) -> bool:
    """Run the jobs of a part with `only` in their names, and draw; whether a kernel's numbers are wrong.

    So they are where they were asked for and none came. A signal ends the jobs, too.
    """
    data = load_config(config, overrides).data
    notebook = Notebook(output)
    measured_before = len(notebook.lines)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit as others, so that what runs is ended too
    jobs = [job for job in jobs_of(part, data.rows_per_pack, data.max_sample_rows) if only in job.name]
    shared = {"config": config, "overrides": overrides, "folder": str(output)}
    measure_all(jobs, shared, notebook, 60.0 * minutes, commit)
    draw(notebook)
    lines = notebook.lines[measured_before:]
    wrong = wrong_checks(lines)
    for name in wrong:
        print(f"error: {name}: more than twice the error of the definition, or not the same twice", file=sys.stderr)
    return bool(wrong) or (part == "check" and not of_kind(lines, "check"))


def measure_all(jobs: list[Job], shared: dict[str, Any], notebook: Notebook, seconds: float, commit: str) -> None:
    """Run the jobs; each number is in the notebook as soon as there is one."""
    start = time.monotonic()

    def tell(line: Line) -> None:
        notebook.add({"at": round(time.monotonic() - start, 2), **line})
        print(in_short(notebook.lines[-1]), flush=True)

    asked = {name: value for name, value in shared.items() if name != "folder"}  # which is a place of this machine
    tell({"kind": "machine", **describe_machine(commit), **asked})
    processes = max(1, (os.cpu_count() or 1) // 2)
    machine = Machine(shared, processes, notebook.folder / "log.txt")
    Schedule(jobs, machine, tell, processes, seconds - (time.monotonic() - start)).run()


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
        variant = f"train.precision={precision}", f"train.activation_checkpointing={checkpointing}"
        peak = trace_step(load_config(config, [*overrides, *variant, "data.packs_per_step=1"]), 1).peak
        sizes = {kind: size / GIB for kind, size in peak.items()}
        notebook.add({"kind": "plan", "name": name, "peak_gib": sum(sizes.values()), "by_kind": sizes})


def draw(notebook: Notebook) -> None:
    """Pictures beside the numbers."""
    from tools.benchmark.drawing import draw as draw_pictures  # here: it takes a second to import

    draw_pictures(notebook.lines, notebook.folder)
    print(f"wrote {notebook.folder}")


def wrong_checks(lines: Sequence[Line]) -> list[str]:
    """Kernels whose numbers are wrong, with the dtype."""
    return [f"{check['name']}, {check['dtype']}" for check in of_kind(lines, "check") if not check["is_right"]]
