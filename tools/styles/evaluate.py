"""How guidance of text changes captions of unseen pictures: guidance.json and guidance.png in the run folder.

The first way guides whether something is missing, how much, and what; the second only what.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oneflow_dist.extras import require
from oneflow_dist.files import naming
from oneflow_dist.runtime import run_program, share_cores
from oneflow_dist.sampling import GUIDED_TEXT
from oneflow_dist.toml import check_range
from tools.styles.grammar import CHANCES, STATEMENTS, Style, draw_picture, draw_style, judge, read_caption

if TYPE_CHECKING:
    from oneflow_dist.canvas import Canvas, Prompt
    from tools.digits.judging import Writer

SEED = 7
WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
WAYS = {"gate, rate and tokens": GUIDED_TEXT, "tokens alone": ("tokens",)}
TITLES = {
    "right": "right statements of a caption",
    "wrong": "wrong statements of a caption",
    "sentences": "captions that are sentences",
}
Interval = tuple[float, float, float]  # a mean, and the bounds of its 95 % interval


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="run folder with a checkpoint, as runs/styles")
    parser.add_argument("--captions", type=int, default=600, help="of each weight and way (%(default)s)")
    parser.add_argument("--weights", type=float, nargs="+", default=WEIGHTS, help="of guidance; 1 is none")
    args = parser.parse_args()
    check_range("--captions", args.captions, "[2, inf)")
    for weight in args.weights:
        check_range("--weights", weight, "(-inf, inf)")
    # Only now, since it takes seconds: what is wrong on the command line has been answered by then.
    from tools.digits.judging import text_of

    writer = load_writer(args.folder)
    if "image" not in writer.config.modality or writer.config.flow.prompt_dropout_prob == 0.0:
        raise ValueError(
            f"{args.folder}: its model has not learnt captions with and without their pictures, between which guidance "
            "lies; name a run of configs/styles.toml"
        )
    styles, prompts = draw_pictures(args.captions)
    report: dict[str, dict[float, dict[str, Interval]]] = {}
    for way, names in WAYS.items():
        report[way] = {}
        for weight in sorted(set(args.weights)):
            canvases = write(writer, f"{way} {weight:g}", prompts, guidance=dict.fromkeys(names, weight))
            report[way][weight] = measure([text_of(canvas, writer.tokenizer) for canvas in canvases], styles)
    there = np.array([[word != "" for word in style] for style in styles])
    lines = {"all there is to tell": float(there.sum(1).mean()), "as in the data": float((there @ CHANCES).mean())}
    with naming(args.folder):
        (args.folder / "guidance.json").write_text(json.dumps({"data": lines, **report}, indent=2) + "\n")
        draw(report, lines, args.folder / "guidance.png")
    print_table(report, lines)
    print(f"wrote {args.folder / 'guidance.json'} and {args.folder / 'guidance.png'}")


def load_writer(folder: Path) -> Writer:
    """The model of a run.

    Raises:
        ValueError: it has learnt something else than styles.
    """
    from oneflow_dist.data.tokenizer import load_tokenizer
    from oneflow_dist.trained import load_model
    from tools.digits.judging import Writer

    share_cores(others=1)  # with whatever else runs here
    model, config = load_model(folder)
    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    shapes = {name: (modality.channels, *modality.shape) for name, modality in config.modality.items()}
    if shapes.get("image", (1, 8, 8)) != (1, 8, 8) or any(len(tokenizer.encode(f" {word}")) > 1 for word in STATEMENTS):
        raise ValueError(f"{folder}: its words or pictures are not those of styles; name a run of configs/styles.toml")
    return Writer(model, config, tokenizer)


def draw_pictures(number: int) -> tuple[list[Style], list[Prompt]]:
    """Styles of held-out digits, and prompts of their pictures."""
    from oneflow_dist.data.codec import pixels_to_latent
    from tools.digits.grammar import load_split

    images, labels = load_split("heldout")
    rng = np.random.default_rng(SEED)
    chosen = np.arange(number) % len(images)
    styles = [draw_style(labels[index], rng) for index in chosen]
    pictures = [draw_picture(images[index], style) for index, style in zip(chosen, styles, strict=True)]
    return styles, [[("image", pixels_to_latent(picture))] for picture in pictures]


def write(writer: Writer, name: str, prompts: Sequence[Prompt], **changes: Any) -> list[Canvas]:
    """A caption after each prompt, with other settings of the sampler."""
    sampling = dataclasses.replace(writer.config.sampling, **changes)
    config = dataclasses.replace(writer.config, sampling=sampling)
    return dataclasses.replace(writer, config=config).write(name, prompts, SEED)


def measure(texts: Sequence[str], styles: Sequence[Style]) -> dict[str, Interval]:
    """What TITLES name, and the share of captions that tell of each attribute, where there is something to tell."""
    right, wrong = np.array([judge(text, style) for text, style in zip(texts, styles, strict=True)]).T
    found = {"right": interval(right), "wrong": interval(wrong)}
    found["sentences"] = share([read_caption(text) is not None for text in texts])
    for number, name in enumerate(Style._fields):
        words = [(style[number], text.split()) for style, text in zip(styles, texts, strict=True)]
        found[name] = share([word in text for word, text in words if word])
    return found


def interval(values: np.ndarray) -> Interval:
    """Of a mean of many values."""
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def share(values: Sequence[bool]) -> Interval:
    """Of a share; (0, 0, 1) of nothing."""
    from oneflow_dist.evaluation.bootstrap import wilson

    return (sum(values) / len(values), *wilson(sum(values), len(values))) if values else (0.0, 0.0, 1.0)


def print_table(report: dict[str, dict[float, dict[str, Interval]]], lines: dict[str, float]) -> None:
    """A line for each weight and way."""
    print("statements of a caption: " + ", ".join(f"{value:.2f} {name}" for name, value in lines.items()))
    for way, by_weight in report.items():
        names = list(next(iter(by_weight.values())))
        print(f"\n{way}\nweight " + "".join(f"{name:>14}" for name in names))
        for weight, found in by_weight.items():
            cells = (f"{mean:.3f} ±{(high - low) / 2:.3f}" for mean, low, high in (found[name] for name in names))
            print(f"{weight:<7g}" + "".join(f"{cell:>14}" for cell in cells))


def draw(report: dict[str, dict[float, dict[str, Interval]]], lines: dict[str, float], path: Path) -> None:
    """A panel for each of TITLES."""
    require(path, "evaluate", "matplotlib")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(TITLES), figsize=(4.4 * len(TITLES), 3.8))
    for axis, (name, title) in zip(axes, TITLES.items(), strict=True):
        for way, by_weight in report.items():
            mean, low, high = np.array([found[name] for found in by_weight.values()]).T
            (line,) = axis.plot(list(by_weight), mean, "o-", markersize=4, label=way)
            axis.fill_between(list(by_weight), low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        axis.axvline(1.0, color="black", alpha=0.3, linewidth=0.8)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("weight (0: picture unseen, 1: no guidance)")
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    for name, value in lines.items():
        axes[0].axhline(value, color="black", linestyle=":", linewidth=1)
        axes[0].annotate(name, (1.0, value), (0, 3), ("axes fraction", "data"), "offset points", ha="right", fontsize=8)
    axes[0].set_ylim(bottom=0)
    axes[1].set_ylim(bottom=0)
    axes[2].set_ylim(top=1.005)
    axes[0].legend(frameon=False, fontsize=8, loc="lower right")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


if __name__ == "__main__":
    run_program(main)
