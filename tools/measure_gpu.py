"""What one GPU can tell about this project: kernels, training steps of 1B parameters, and a peer beside them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from oneflow_dist.config import load_config
from oneflow_dist.measuring.contest_report import contest_tables, draw_contests
from oneflow_dist.measuring.jobs import Job, Settings, all_jobs, run_jobs
from oneflow_dist.measuring.result import describe_machine, draw_result, summarize, table, table_line
from oneflow_dist.runtime import run_program


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/oneflow_1b.toml", help="what to train")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything; what does not fit is skipped")
    parser.add_argument("--steps", type=int, default=20, help="timed training steps of each variant, after others")
    parser.add_argument("--output", type=Path, default=Path("kernels/results"), help="folder for the result files")
    parser.add_argument("--commit", default="", help="of this code, where its folder is a copy without git")
    parser.add_argument("--only", default="", help="measure only what has this in its name, as 'ours bf16'")
    parser.add_argument("--list", action="store_true", help="print the names of all measurements, measure nothing")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="values are TOML")
    args = parser.parse_intermixed_args()
    start = time.monotonic()
    data = load_config(args.config, args.overrides).data
    jobs = [job for job in all_jobs(data.rows_per_pack, data.max_sample_rows) if args.only in job.name]
    if args.list:
        print("\n".join(job.name for job in jobs))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exit as others, so that what runs is ended too
    settings = Settings(config=args.config, overrides=tuple(args.overrides), steps=args.steps)
    path = measure_all(jobs, settings, start + 60.0 * args.minutes, args.output, args.commit)
    print(f"wrote {path}, and beside it tables, pictures and a log")


def measure_all(jobs: list[Job], settings: Settings, end: float, folder: Path, commit: str) -> Path:
    """Run the jobs until `end` of the monotonic clock; the result is written anew after each, drawn after the last."""
    machine = describe_machine(commit)
    folder.mkdir(parents=True, exist_ok=True)
    device = "".join(letter if letter.isalnum() else "-" for letter in machine["device"])
    path = folder / f"{device}-{machine['date'][:19].replace(':', '')}.json"
    entries: list[dict[str, Any]] = []

    def write() -> dict[str, Any]:
        result = summarize(machine, dataclasses.asdict(settings), entries)
        path.write_text(json.dumps(result, indent=2) + "\n")
        return result

    def note(entry: dict[str, Any]) -> None:
        entries.append(entry)
        runs = write()["runs"]
        is_run = entry["kind"] in ("ours", "peer")
        line = table_line(runs[-1]) if is_run else f"{entry['name']:<34} {entry.get('reason', entry['status'])}"
        print(f"{line}  ({entry['seconds']:.0f} s)", flush=True)

    run_jobs(jobs, settings, end - time.monotonic(), path.with_suffix(".log"), note)
    report(write(), path)
    return path


def report(result: dict[str, Any], path: Path) -> None:
    """Print what there is, and write tables and pictures beside the numbers."""
    if result["runs"]:
        print(json.dumps(result["comparison"], indent=2))
        print(table(result))
        draw_result(result, path.with_suffix(".png"))
    if result["kernels"] or result["cases"]:
        tables = contest_tables(result)
        print(tables)
        path.with_suffix(".md").write_text(tables)
    if result["cases"]:
        draw_contests(result, path.with_name(f"{path.stem}-kernels.png"))


if __name__ == "__main__":
    run_program(main)
