"""Losses of one or several runs over their steps as one picture, and the last ones as a table.

For each source the held-out loss of the weights (dashed) and of their average, its text by time and by missing share,
and its velocities by time; with the loss of training. Colours are runs, or with one run bins.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from oneflow_dist.extras import require
from oneflow_dist.files import naming
from oneflow_dist.runtime import run_program

SMOOTHED = 50  # stretches of a run, over each of which the training loss is averaged
BIN_STYLES = ("-", "--", "-.", ":", (0, (1, 3)))  # where colours are runs
LOG_FROM = 5.0  # times between the values of a panel, from which its scale is logarithmic
AVERAGE, WEIGHTS = "validation_ema/", "validation/"
Lines = list[dict[str, Any]]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("output", type=Path, help="the picture, as curves.png")
    args = parser.parse_args()
    require("oneflow curves", "evaluate", "matplotlib")
    runs = {run.resolve().name: read_lines(run) for run in args.runs}
    if len(runs) < len(args.runs):
        names = ", ".join(map(str, args.runs))
        raise ValueError(f"RUN: {names}: two have one name, by which the picture tells them apart; rename one")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with naming(args.output):
        draw(runs, args.output)
    print_table(runs)
    print(f"wrote {args.output}")


def read_lines(run: Path) -> Lines:
    """What a run has reported.

    Raises:
        ValueError: nothing, or a line is damaged.
    """
    path = run / "metrics.jsonl"
    if not path.is_file() or not (text := path.read_text()):
        raise ValueError(f"{path}: no line of a run is here; name the folder of one that has begun")
    try:
        return [json.loads(line) for line in text.splitlines() if line]
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}); remove the line") from error


def print_table(runs: dict[str, Lines]) -> None:
    """The last held-out losses of the average, a line each."""
    for name, lines in runs.items():
        steps = [line["step"] for line in lines if is_held_out(line)]
        if not steps:
            print(f"{name}  nothing held out: set validation.mixture and validation.every_steps")
        for source in sources_of(lines):
            losses = {key: curve(lines, f"{AVERAGE}{source}/{key}")[1] for key in ("loss", "text", *kinds_of(lines))}
            last = ", ".join(f"{key} {values[-1]:.4f}" for key, values in losses.items() if len(values))
            print(f"{name}  step {steps[-1]}  {source}: {last}")


def draw(runs: dict[str, Lines], path: Path) -> None:
    """A row of panels for each source, training in the first."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    everything = [line for lines in runs.values() for line in lines]
    sources, kinds = sources_of(everything), kinds_of(everything)
    columns = 3 + len(kinds)
    shape = (max(1, len(sources)), columns)
    figure, axes = pyplot.subplots(*shape, figsize=(4.2 * columns, 3.4 * shape[0]), squeeze=False, sharex=True)
    colours = pyplot.rcParams["axes.prop_cycle"].by_key()["color"]
    for row, source in zip(axes, sources or [""], strict=True):
        for number, (name, lines) in enumerate(runs.items()):
            label = f"{name}: " if len(runs) > 1 else ""
            row[0].plot(
                *smooth(lines),
                color=colours[number % len(colours)],
                alpha=0.35,
                linewidth=3,
                label=f"{label}training, all",
            )
            for prefix, style, kind in ((WEIGHTS, "x--", "weights"), (AVERAGE, ".-", "average")):
                points = curve(lines, f"{prefix}{source}/loss")
                row[0].plot(
                    *points, style, color=colours[number % len(colours)], markersize=5, label=f"{label}held out, {kind}"
                )
            of_bins = [("text/time_", 4), ("text/missing_", 5), *((f"{kind}/time_", 4) for kind in kinds)]
            for axis, (key, count) in zip(row[1:], of_bins, strict=True):
                for part in range(count):
                    points = curve(lines, f"{AVERAGE}{source}/{key}{part}")
                    if len(points[0]):
                        is_alone = len(runs) == 1
                        colour = colours[(part if is_alone else number) % len(colours)]
                        dashes = BIN_STYLES[0 if is_alone else part]
                        text = f"{label}{name_bin(key, part)}"
                        axis.plot(*points, linestyle=dashes, color=colour, marker=".", label=text)
        titles = ["loss", "text by text time", "text by missing share", *(f"{kind} by time" for kind in kinds)]
        for axis, title in zip(row, titles, strict=True):
            finish(axis, f"{source}: {title}" if source else title)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def finish(axis: Any, title: str) -> None:
    """Title, scales and legend of a panel."""
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("step")
    axis.tick_params(labelbottom=True)
    if axis.lines:
        values = np.concatenate([line.get_ydata() for line in axis.lines])
        if values.size and 0.0 < LOG_FROM * values.min() < values.max():
            axis.set_yscale("log")
        axis.legend(frameon=False, fontsize=7)
        axis.grid(alpha=0.25, which="both")


def name_bin(key: str, part: int) -> str:
    """What the samples of a bin have in common."""
    if "missing" not in key:
        return f"{part / 4:g} to {(part + 1) / 4:g}"
    return f"{25 * (part - 1)} to {25 * part} % missing" if part else "nothing missing"


def is_held_out(line: dict[str, Any]) -> bool:
    """Whether a line of metrics.jsonl is of held-out losses, and not of a step."""
    return any(key.startswith(WEIGHTS) for key in line)


def sources_of(lines: Lines) -> list[str]:
    """The held-out sources."""
    ends = [key.removeprefix(AVERAGE).removesuffix("/loss") for key in _keys(lines) if key.endswith("/loss")]
    return [end for end in ends if not end.startswith(WEIGHTS)]


def kinds_of(lines: Lines) -> list[str]:
    """The modalities that any source has, as velocity_NAME."""
    return list(dict.fromkeys(key.split("/")[-1] for key in _keys(lines) if key.split("/")[-1].startswith("velocity_")))


def _keys(lines: Lines) -> list[str]:
    return list(dict.fromkeys(key for line in lines if is_held_out(line) for key in line))


def curve(lines: Lines, key: str) -> tuple[list[int], list[float]]:
    """Steps and values of a key, where it has a value."""
    there = [line for line in lines if line.get(key) is not None]
    return [line["step"] for line in there], [line[key] for line in there]


def smooth(lines: Lines) -> tuple[np.ndarray, np.ndarray]:
    """The training loss, averaged over stretches of a run."""
    points = np.array(curve(lines, "loss"), dtype=float)
    parts = np.array_split(points, min(SMOOTHED, max(1, points.shape[1])), axis=1)
    steps, values = np.array([part.mean(axis=1) for part in parts if part.size]).reshape(-1, 2).T
    return steps, values


if __name__ == "__main__":
    run_program(main)
