"""The page that shows a chain of stages: losses, right answers, and some answers to look at."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oneflow_dist.commands.curves import AVERAGE, Lines, curve, smooth, sources_of
from oneflow_dist.extras import require

if TYPE_CHECKING:
    from tools.stages.judging import Example

COLUMNS = 12


def draw_page(path: Path, runs: dict[str, Lines], report: dict[str, Any], examples: list[Example]) -> None:
    """Write a PNG.

    Args:
        runs: what each stage has reported.
    """
    require(path, "evaluate", "matplotlib")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure = pyplot.figure(figsize=(16, 12))
    grid = figure.add_gridspec(3, COLUMNS, height_ratios=(1.0, 1.0, 1.1), hspace=0.45, wspace=0.9)
    for number, (stage, lines) in enumerate(runs.items()):
        _draw_losses(figure.add_subplot(grid[0, 3 * number : 3 * number + 3]), stage, lines)
    _draw_answers(figure.add_subplot(grid[1, :8]), report)
    _draw_text(figure.add_subplot(grid[1, 9:]), report["text, nats a slot"])
    for number, example in enumerate(examples[:COLUMNS]):
        _draw_example(figure.add_subplot(grid[2, number]), example)
    figure.savefig(path, dpi=100, bbox_inches="tight")
    pyplot.close(figure)


def _draw_losses(axis: Any, stage: str, lines: Lines) -> None:
    axis.plot(*smooth(lines), label="training", linewidth=1)
    for source in sources_of(lines):
        points = curve(lines, f"{AVERAGE}{source}/loss")
        axis.plot(*points, marker="o", markersize=3, linewidth=1, label=f"held out: {source}")
    axis.set_title(stage)
    axis.set_xlabel("step")
    axis.legend(frameon=False, fontsize=6, ncol=3, loc="upper center", bbox_to_anchor=(0.5, -0.17))


def _draw_answers(axis: Any, report: dict[str, Any]) -> None:
    """Bars with their intervals: with pictures, without, and by the question alone."""
    asked = report["questions"]
    bars = (asked | report["requests"]).items()
    for number, (name, found) in enumerate(bars):
        low, high = found["interval"]
        error = [[found["right"] - low], [high - found["right"]]]
        axis.bar(number, found["right"], 0.27, yerr=error, color="tab:blue")
        if name in asked:
            axis.bar(number + 0.28, found["blind"]["right"], 0.27, color="tab:grey")
            axis.bar(number + 0.56, found["commonest"], 0.27, color="lightgrey")
    axis.set_xticks(
        range(len(bars)), [f"{name}\n{found['right']:.3f}".replace("_", "\n") for name, found in bars], fontsize=8
    )
    axis.set_ylim(0, 1)
    axis.set_title(
        "right answers on held-out data with 95 % intervals; grey: without the picture, light: by the question"
    )


def _draw_text(axis: Any, text: dict[str, float]) -> None:
    axis.bar(list(text), list(text.values()), color="tab:green")
    axis.margins(y=0.1)
    axis.set_title("held-out text, nats a slot")
    axis.tick_params(axis="x", labelsize=7)
    for number, value in enumerate(text.values()):
        axis.text(number, value, f"{value:.3f}", ha="center", va="bottom", fontsize=8)


def _draw_example(axis: Any, example: Example) -> None:
    """The pictures of an example side by side over what was said."""
    given, question, answer = example
    pictures = given or [part for part in answer if not isinstance(part, str)]
    said = " ".join(part if isinstance(part, str) else "[picture]" for part in answer)
    if pictures:
        pixels = [np.clip((picture.transpose(1, 2, 0) + 1.0) / 2.0, 0, 1) for picture in pictures]
        axis.imshow(np.concatenate(pixels, axis=1))
    axis.axis("off")
    axis.set_title("\n".join([*textwrap.wrap(question, 18), "->", *textwrap.wrap(said, 18)]), fontsize=7)
