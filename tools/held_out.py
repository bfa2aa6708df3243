"""Losses of trained models on data that they have not seen: of text, and of velocities by time; a table and a plot.

Every model gets the same samples, noised by the same keys.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oneflow_dist.files import naming
from oneflow_dist.runtime import run_program, share_cores
from oneflow_dist.toml import check_range

if TYPE_CHECKING:
    from oneflow_dist.config import Config
    from oneflow_dist.containers import NoisySample
    from oneflow_dist.model.oneflow import OneFlow

BINS = 10  # of time
PACK_ROWS = 4096  # that go through the model together


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mixture", help="YAML file of the held-out sources; each is measured by itself")
    parser.add_argument("output", type=Path, help="folder for held_out.json and held_out.png")
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, or folders of checkpoints")
    parser.add_argument("--samples", type=int, default=1000, help="of each source, in passes over it (%(default)s)")
    args = parser.parse_args()
    check_range("--samples", args.samples, "[1, inf)")
    # Only now, since it takes seconds: what is wrong on the command line has been answered by then.
    from tqdm import tqdm

    from oneflow_dist.trained import load_model

    share_cores(others=1)  # with whatever else runs here
    report: dict[str, dict[str, Any]] = {}
    for run in tqdm(args.runs, unit="run"):
        model, config = load_model(run)
        report[str(run)] = measure(model, config, args.mixture, args.samples)
    args.output.mkdir(parents=True, exist_ok=True)
    with naming(args.output):
        (args.output / "held_out.json").write_text(json.dumps(report, indent=2) + "\n")
        draw(report, args.output / "held_out.png")
    for run, of_sources in report.items():
        for source, losses in of_sources.items():
            velocities = ", ".join(f"{kind} {each['all']:.4f}" for kind, each in losses["velocity"].items())
            print(f"{run}  {source}: text {losses['text']:.4f} nats a slot; velocity {velocities or 'none'}")
    print(f"wrote {args.output / 'held_out.json'} and {args.output / 'held_out.png'}")


def measure(model: OneFlow, config: Config, mixture: str, num_samples: int) -> dict[str, Any]:
    """For each source: nats of an open slot, and for each modality mean squares of an element, all and by time."""
    from oneflow_dist.data.mixture import load_mixture

    flow = dataclasses.replace(config.flow, normalize="batch", condition_dropout_prob=0.0)
    data = dataclasses.replace(config.data, packs_per_step=1, mixture=mixture, overlong="drop")
    run = dataclasses.replace(config.run, seed=0)  # for all models, however they were trained
    config = dataclasses.replace(config, flow=flow, data=data, run=run)
    return {
        source.name: measure_samples(model, config, draw_samples(config, source, num_samples))
        for source in load_mixture(mixture)
    }


def draw_samples(config: Config, source: Any, number: int) -> Iterator[list[NoisySample]]:
    """The first samples of a source, noised, in groups that go through the model together."""
    from oneflow_dist.data.packing import size_of
    from oneflow_dist.data.shards import open_shards
    from oneflow_dist.data.streams import SourceStream, read_document
    from oneflow_dist.data.tokenizer import load_tokenizer

    shards = open_shards(source.name, source.shards, source.index)
    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    stream = SourceStream(source, shards, 0, config, tokenizer, read_document)
    group: list[NoisySample] = []
    for _ in range(number):
        _, noisy = next(stream)
        if group and size_of([*group, noisy]).rows > PACK_ROWS:
            yield group
            group = []
        group.append(noisy)
    yield group


def measure_samples(model: OneFlow, config: Config, groups: Iterator[list[NoisySample]]) -> dict[str, Any]:
    """The losses of samples, each divided by what it is of."""
    import torch

    from oneflow_dist.containers import Counts
    from oneflow_dist.data.packing import pack
    from oneflow_dist.flow.losses import compute_losses

    device = next(model.parameters()).device
    text, total = 0.0, Counts.zeros()
    squares, elements = np.zeros((2, len(config.modality), BINS))
    for group in groups:
        batch = pack(group, None).to(device)
        total += batch.counts
        with torch.no_grad():
            prediction = model(batch)
            losses = compute_losses(prediction, batch, batch.counts, config)
        text += float(losses.zero + losses.rate + losses.bag) * max(1, batch.counts.open_slots)
        for number, (velocity, pieces) in enumerate(zip(prediction.velocity, batch.pieces, strict=True)):
            is_moving = pieces.patch_weight > 0
            error = (velocity - pieces.velocity)[is_moving].double().square().sum(1).cpu().numpy()
            place = np.minimum(pieces.time[pieces.patch_piece][is_moving].cpu().numpy() * BINS, BINS - 1).astype(int)
            squares[number] += np.bincount(place, error, BINS)
            elements[number] += np.bincount(place, minlength=BINS) * velocity.shape[1]
    return {
        "samples": total.sequences,
        "text": text / max(1, total.open_slots),
        "velocity": {
            kind: {
                "all": float(squares[number].sum() / elements[number].sum()),
                "by time": (squares[number] / np.maximum(elements[number], 1)).tolist(),
            }
            for number, kind in enumerate(config.modality)
            if elements[number].any()
        },
    }


def draw(report: dict[str, dict[str, Any]], path: Path) -> None:
    """A panel for each source and modality: the loss of each run over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [(source, kind) for source, losses in next(iter(report.values())).items() for kind in losses["velocity"]]
    figure, axes = pyplot.subplots(1, max(1, len(panels)), figsize=(5.5 * max(1, len(panels)), 4), squeeze=False)
    for axis, (source, kind) in zip(axes[0], panels, strict=False):
        for run, of_sources in report.items():
            if kind in of_sources[source]["velocity"]:
                by_time = of_sources[source]["velocity"][kind]["by time"]
                axis.plot((np.arange(BINS) + 0.5) / BINS, by_time, marker="o", markersize=3, label=Path(run).name)
        axis.set_title(f"{source}: {kind}")
        axis.set_xlabel("time (0 noise, 1 clean)")
        axis.set_ylabel("velocity, mean square of an element")
        axis.set_ylim(bottom=0)
        axis.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    run_program(main)
