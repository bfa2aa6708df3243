"""How long captions get that models write from nothing, by the number of steps: lengths.json and .png in a folder.

Models whose heads know no time write longer texts the more steps they take, unless sampling.clock_share corrects them:
by the shares that are asked for, and by the one that the model itself says.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oneflow_dist.config import RANGES
from oneflow_dist.extras import require
from oneflow_dist.files import naming
from oneflow_dist.runtime import run_program
from oneflow_dist.toml import check_range
from tools.styles.evaluate import SEED, load_writer, write
from tools.styles.grammar import choose, draw_style, write_caption

if TYPE_CHECKING:
    from tools.digits.judging import Writer

NUM_DATA = 20_000  # captions of the data, whose lengths the others are compared with
LONGEST = 24  # tokens that are told apart
Law = list[float]  # of a length: its probability


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="folder for lengths.json and lengths.png")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, trained on configs/data/styles_text.yaml")
    parser.add_argument("--captions", type=int, default=1000, help="of each way and number of steps (%(default)s)")
    parser.add_argument("--steps", type=int, nargs="+", default=(4, 8, 16, 32, 64), help="default: %(default)s")
    parser.add_argument("--shares", type=float, nargs="+", default=(0.5, 0.8, 1.0), help="default: %(default)s")
    args = parser.parse_args()
    check_range("--captions", args.captions, "[1, inf)")
    for steps in args.steps:
        check_range("--steps", steps, RANGES["sampling"]["steps"])
    for share in args.shares:
        check_range("--shares", share, RANGES["sampling"]["clock_share"])
    runs = {run.resolve().name: run for run in args.runs}
    if len(runs) < len(args.runs):
        raise ValueError(
            f"RUN: {', '.join(map(str, args.runs))}: two have one name, which tells them apart; rename one"
        )
    report: dict[str, dict[int, Law]] = {}
    for name, run in runs.items():
        writer = load_writer(run)
        lengths = [len(writer.tokenizer.encode(caption)) for caption in write_captions(NUM_DATA)]
        data = law_of(lengths)
        for way, share in ways_of(writer, args.shares, args.captions).items():
            laws = report[f"{name}: {way}"] = {}
            for steps in sorted(set(args.steps)):
                asked = {"steps": steps, "clock_share": share, "guidance": {}}
                canvases = write(writer, f"{steps} steps", [[]] * args.captions, **asked)
                laws[steps] = law_of([len(canvas.tokens) - 1 for canvas in canvases])
    parts = [lengths[first : first + args.captions] for first in range(0, NUM_DATA, args.captions)]
    floor = float(np.mean([distance(law_of(part), data) for part in parts]))
    args.output.mkdir(parents=True, exist_ok=True)
    with naming(args.output):
        (args.output / "lengths.json").write_text(json.dumps({"data": data, **report}, indent=2) + "\n")
        draw(report, data, floor, args.output / "lengths.png")
    print_table(report, data, floor)
    print(f"wrote {args.output / 'lengths.json'} and {args.output / 'lengths.png'}")


def write_captions(number: int) -> list[str]:
    """Captions of the grammar, of pictures that nobody has drawn."""
    rng = np.random.default_rng(SEED)
    return [write_caption(choose(draw_style(int(rng.integers(10)), rng), rng)) for _ in range(number)]


def ways_of(writer: Writer, shares: list[float], number: int) -> dict[str, float]:
    """Shares of the clock by name: none where heads know the time."""
    if writer.config.heads.time_conditioning != "none":
        return {"heads know the time": 0.0}
    own = measure_overdispersion(writer, write_captions(number))
    print(f"overdispersion: {own:.3f}")
    own = round(min(1.0, own), 2)
    names = {share: f"clock share {share:g}{', its own' if share == own else ''}" for share in sorted({*shares, own})}
    return {"heads know no time": 0.0} | {name: share for share, name in names.items()}


def measure_overdispersion(writer: Writer, captions: list[str]) -> float:
    """The part of the clock's correction that the model has not made itself: how far slots tell nothing of each other.

        E[(sum of (k - expected count))^2] / E[sum of (k - expected count)^2]        over the slots of a text

    of k missing tokens, at the instants of training. It is 1 where slots are independent given what is there, and 0
    where the length of the whole is known.
    """
    import torch

    from oneflow_dist.containers import Document, TextPart
    from oneflow_dist.data.samples import make_sample
    from oneflow_dist.flow.noising import Noising, noise_sample
    from oneflow_dist.forward import Forward
    from oneflow_dist.guidance import predict

    config, rng = writer.config, np.random.default_rng(SEED)
    noising = dataclasses.replace(Noising.of(config), averages_bags=False)
    noisy = []
    for number, caption in enumerate(captions):
        document = Document(key=str(number), parts=(TextPart(tokens=writer.tokenizer.encode(caption)),))
        sample = make_sample(document, "text_only", "latents", [], writer.tokenizer, config.modality, rng)
        noisy.append(noise_sample(sample, noising, rng))
    unguided = dataclasses.replace(config.sampling, guidance={})
    with torch.no_grad():
        forward = Forward(writer.model, config.sees, keeps=False)
        said = predict(forward, noisy, list(config.modality), [unguided] * len(noisy), step=0)
    assert said.zero_logit is not None, "texts whose lengths are told by insertion heads"
    assert said.log_rate is not None, "texts whose lengths are told by insertion heads"
    expected = (torch.sigmoid(-said.zero_logit) * said.log_rate.clamp(min=0.0).exp()).double().cpu().numpy()
    surplus = np.concatenate([sample.bags.missing_count for sample in noisy]) - expected
    surplus[~np.concatenate([sample.is_open for sample in noisy])] = 0.0
    ends = np.cumsum([len(sample.tokens) for sample in noisy])[:-1]
    of_texts = np.array([part.sum() for part in np.split(surplus, ends)])
    return float((of_texts**2).sum() / (surplus**2).sum())


def law_of(lengths: list[int]) -> Law:
    """Shares of the lengths 0 to LONGEST, which stands for longer ones, too."""
    counts = np.bincount(np.minimum(lengths, LONGEST), minlength=LONGEST + 1)
    return (counts / counts.sum()).tolist()


def mean_length(law: Law) -> float:
    """The expected length."""
    return float(np.arange(len(law)) @ law)


def distance(one: Law, other: Law) -> float:
    """Total variation: the part of one law that would have to move to make the other."""
    return 0.5 * float(np.abs(np.subtract(one, other)).sum())


def print_table(report: dict[str, dict[int, Law]], data: Law, floor: float) -> None:
    """A line for each way: mean length and total variation at each number of steps."""
    print(f"mean length and total variation to the data; {mean_length(data):.2f} {floor:.3f}: captions of the data")
    width = max(map(len, report))
    print("steps".ljust(width) + "".join(f"{steps:>14}" for steps in next(iter(report.values()))))
    for way, laws in report.items():
        cells = (f"{mean_length(law):.2f} {distance(law, data):.3f}" for law in laws.values())
        print(way.ljust(width) + "".join(f"{cell:>14}" for cell in cells))


def draw(report: dict[str, dict[int, Law]], data: Law, floor: float, path: Path) -> None:
    """Mean length and total variation over the steps, and all lengths at the most of them."""
    require(path, "evaluate", "matplotlib")
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (means, distances, laws) = pyplot.subplots(1, 3, figsize=(14, 4.2))
    most = max(next(iter(report.values())))
    laws.bar(range(len(data)), data, color="black", alpha=0.15, label="data")
    for way, by_steps in report.items():
        steps = list(by_steps)
        means.plot(steps, [mean_length(law) for law in by_steps.values()], "o-", markersize=4, label=way)
        distances.plot(steps, [distance(law, data) for law in by_steps.values()], "o-", markersize=4)
        laws.plot(by_steps[most], ".-", linewidth=1)
    means.axhline(mean_length(data), color="black", linestyle=":", linewidth=1, label="data")
    for axis in (means, distances):
        axis.set_xscale("log", base=2)
        axis.set_xticks(steps, [str(number) for number in steps])
        axis.set_xlabel("steps")
    distances.axhline(floor, color="black", linestyle=":", linewidth=1)  # of as many captions of the data themselves
    distances.set_ylim(bottom=0)
    laws.set_xlabel("tokens")
    laws.set_xlim(0, 12)
    titles = {"mean length": means, "total variation to the data": distances, f"lengths at {most} steps": laws}
    for title, axis in titles.items():
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*means.get_legend_handles_labels(), loc="lower center", ncol=4, frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


if __name__ == "__main__":
    run_program(main)
