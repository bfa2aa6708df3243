"""An upper bound of the bits that a model needs for each token of held-out texts, whatever its objective.

See `oneflow_dist/evaluation/likelihood.py` for the bound. Heads of insertions have to know the time: else it is loose.
Blocks are summed over a text; each tells its own length, too. Only tokens of the text count.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oneflow_dist.runtime import run_program, share_cores
from oneflow_dist.toml import check_range

if TYPE_CHECKING:
    from oneflow_dist.config import Config
    from oneflow_dist.containers import Sample
    from oneflow_dist.data.mixture import Source
    from oneflow_dist.model.oneflow import OneFlow

SEED = 3
GROUP = 16  # texts whose sum is one measurement: their spread gives the error


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="run folder (its last checkpoint), or one checkpoint's folder")
    parser.add_argument("--mixture", default="", help="of held-out texts; default: validation.mixture of the run")
    parser.add_argument(
        "--task",
        choices=("text_only", "image_to_text"),
        default="text_only",
        help="of which the text is target: alone, or with a given image (%(default)s)",
    )
    parser.add_argument("--documents", type=int, default=256, help="texts of each source (%(default)s)")
    parser.add_argument(
        "--instants", type=int, default=16, help="at which each text or block is looked at (%(default)s)"
    )
    args = parser.parse_args()
    check_range("--documents", args.documents, "[1, inf)")
    check_range("--instants", args.instants, "[1, inf)")
    # Only now, since it takes seconds: what is wrong on the command line has been answered by then.
    from oneflow_dist.data.mixture import load_mixture
    from oneflow_dist.trained import load_model

    share_cores(others=1)  # with whatever else runs here
    model, config = load_model(args.checkpoint)
    mixture = args.mixture or config.validation.mixture
    if not mixture:
        raise ValueError(f"{args.checkpoint}: its run has no validation.mixture; name one with --mixture")
    for source in load_mixture(mixture):
        if args.task not in (*source.tasks, "text_only"):
            print(f"{source.name}: has no task {args.task}")
            continue
        texts = draw_texts(source, config, mixture, args.documents, args.task)
        bits, error = measure(model, config, texts, args.instants, source.name)
        print(f"{source.name}: at most {bits:.3f} bits a token, error {error:.3f}; {len(texts)} texts")


def draw_texts(
    source: Source, config: Config, mixture: str, number: int, task: str = "text_only"
) -> list[list[Sample]]:
    """The first texts of a source, each as its targets one after the other: all of it, or its blocks."""
    from oneflow_dist.data.excerpts import cut_blocks
    from oneflow_dist.data.tokenizer import load_tokenizer
    from oneflow_dist.validation import draw_documents

    is_cut = "blocks" in source.tasks
    config = dataclasses.replace(
        config, validation=dataclasses.replace(config.validation, mixture=mixture, samples=number)
    )
    tokenizer, rng = load_tokenizer(config.data.tokenizer, config.modality), np.random.default_rng(SEED)
    whole = dataclasses.replace(source, tasks={task: 1.0})
    samples = draw_documents(config, whole)
    return [cut_blocks(sample, config.data.block_rows, tokenizer, rng) if is_cut else [sample] for sample in samples]


def measure(model: OneFlow, config: Config, texts: list[list[Sample]], instants: int, name: str) -> tuple[float, float]:
    """Bits a token, and the standard error of that."""
    from oneflow_dist.bars import bar
    from oneflow_dist.data.packing import pack
    from oneflow_dist.data.tokenizer import load_tokenizer
    from oneflow_dist.evaluation.likelihood import look_at, sum_bound
    from oneflow_dist.process import process_of

    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    process = process_of(config, tokenizer.eos, tokenizer.mark)
    groups = [texts[first : first + GROUP] for first in range(0, len(texts), GROUP)]
    nats, tokens = [], []
    for number, group in enumerate(bar(groups, desc=name, unit="group")):
        rng, total = np.random.default_rng([SEED, number]), 0.0
        for instant in range(instants):
            targets = [target for blocks in group for target in blocks]
            noisy, hazard = look_at(targets, instant, instants, config, process, rng)
            batch = pack(noisy, None, sees=config.sees)
            total += sum_bound(model, batch, np.full(len(noisy), hazard)) / instants
        nats.append(total)
        is_filling = not config.objective.inserts
        tokens.append(sum(num_tokens(blocks, tokenizer.eos if is_filling else None) for blocks in group))
    bits, counts = np.array(nats) / math.log(2.0), np.array(tokens)
    mean = float(bits.sum() / counts.sum())
    spread = np.square(bits - mean * counts).sum() / max(1, len(groups) - 1)
    return mean, float(math.sqrt(spread / len(groups)) / counts.mean())


def num_tokens(blocks: list[Sample], filling: int | None) -> int:
    """Of a text, its targets; not those that are filling."""
    whole = blocks[-1]
    is_written = (np.arange(len(whole.tokens)) >= blocks[0].front) & (whole.tokens != filling)
    return int(is_written.sum())


if __name__ == "__main__":
    run_program(main)
