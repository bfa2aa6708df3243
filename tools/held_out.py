"""Losses of trained models on data that they have not seen, by time and missing share; a table and a plot.

Every model gets the same documents at the same instants, those of `validation` in a config.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from oneflow_dist.extras import require
from oneflow_dist.files import naming
from oneflow_dist.runtime import run_program, share_cores
from oneflow_dist.toml import check_range

if TYPE_CHECKING:
    from oneflow_dist.config import Config
    from oneflow_dist.model.oneflow import OneFlow


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mixture", help="YAML file of the held-out sources; each is measured by itself")
    parser.add_argument("output", type=Path, help="folder for held_out.json and held_out.png")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders of checkpoints")
    parser.add_argument("--samples", type=int, default=1000, help="documents of each source (%(default)s)")
    args = parser.parse_args()
    check_range("--samples", args.samples, "[1, inf)")
    # Only now, since it takes seconds: what is wrong on the command line has been answered by then.
    from oneflow_dist.bars import bar
    from oneflow_dist.trained import load_model

    share_cores(others=1)  # with whatever else runs here
    report: dict[str, dict[str, dict[str, float]]] = {}
    for run in bar(args.runs, unit="run"):
        model, config = load_model(run)
        report[str(run)] = measure(model, config, args.mixture, args.samples)
    args.output.mkdir(parents=True, exist_ok=True)
    with naming(args.output):
        (args.output / "held_out.json").write_text(json.dumps(report, indent=2) + "\n")
        draw(report, args.output / "held_out.png")
    for run, of_sources in report.items():
        for source, losses in of_sources.items():
            print(f"{run}  {source}: " + ", ".join(f"{k} {v:.4f}" for k, v in losses.items() if "/" not in k))
    print(f"wrote {args.output / 'held_out.json'} and {args.output / 'held_out.png'}")


def measure(model: OneFlow, config: Config, mixture: str, num_samples: int) -> dict[str, dict[str, float]]:
    """For each source its losses by name, as in metrics.jsonl."""
    from oneflow_dist.validation import Validation

    flow = dataclasses.replace(config.flow, normalize="batch")  # nats of an open slot, however the model was trained
    asked = dataclasses.replace(config.validation, mixture=mixture, samples=num_samples)
    train = dataclasses.replace(config.train, compile=False)  # so that nothing is padded
    config = dataclasses.replace(config, flow=flow, validation=asked, train=train)
    validation = Validation(config, 0, 1, model, next(model.parameters()).device)
    report: dict[str, dict[str, float]] = {}
    for name, value in validation.losses(model).items():
        source, _, loss = name.partition("/")
        report.setdefault(source, {})[loss] = value
    return report


def draw(report: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """A panel for each source and what is by time: the losses of each run."""
    require(path, "evaluate", "matplotlib")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from oneflow_dist.validation import BINS

    first = next(iter(report.values()))
    panels = [
        (source, kind)
        for source, losses in first.items()
        for kind in dict.fromkeys(name.partition("/")[0] for name in losses if "/time_" in name)
    ]
    figure, axes = pyplot.subplots(1, max(1, len(panels)), figsize=(5.5 * max(1, len(panels)), 4), squeeze=False)
    for axis, (source, kind) in zip(axes[0], panels, strict=False):
        for run, of_sources in report.items():
            start = f"{kind}/time_"
            points = {int(k.removeprefix(start)): v for k, v in of_sources[source].items() if k.startswith(start)}
            times = [(number + 0.5) / BINS for number in points]
            axis.plot(times, list(points.values()), marker="o", markersize=3, label=Path(run).name)
        axis.set_title(f"{source}: {kind}")
        axis.set_xlabel("time (0: nothing, noise; 1: all of it, clean)")
        axis.set_ylabel("nats of an open slot" if kind == "text" else "mean square of an element")
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    run_program(main)
