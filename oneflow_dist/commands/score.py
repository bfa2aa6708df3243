"""Score the answers in a folder of oneflow evaluate once more, without the model: report.json and a page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oneflow_dist.runtime import run_program

if TYPE_CHECKING:
    from oneflow_dist.evaluation.suite import Suite


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="what oneflow evaluate has written")
    parser.add_argument("--suite", type=Path, help="another suite with the same questions (suite.toml of the folder)")
    args = parser.parse_args()
    # Only now, since it takes seconds: what is wrong on the command line has been answered by then.
    from oneflow_dist.evaluation.suite import load_suite

    write_report(load_suite(args.suite or args.folder / "suite.toml"), args.folder)


def write_report(suite: Suite, folder: Path) -> dict[str, Any]:
    """Score, draw and print."""
    import torch

    from oneflow_dist.evaluation.pace import measure_suite
    from oneflow_dist.evaluation.page import draw_page
    from oneflow_dist.evaluation.report import REPORT, as_table, load_items, score_suite

    torch.set_num_threads(1)  # with another number last bits of features differ
    items = load_items(suite)
    report = score_suite(suite, folder, items)
    draw_page(folder / "page.png", suite, folder, items, report)
    print(as_table(report))
    for name, seconds in measure_suite(suite, folder).items():
        told = ", ".join(f"{key} {own['value']:.2f}" for key, own in seconds.items())
        print(f"{name}, on this machine: {told}")
    print(f"wrote {folder / REPORT} and {folder / 'page.png'}")
    return report


if __name__ == "__main__":
    run_program(main)
