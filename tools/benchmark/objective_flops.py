"""What the same document costs under every objective: in real packs, and in closed form."""

# Shapes: L text tokens and an image of R rows, or none, in a document.

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import numpy as np

from oneflow_dist.config import Config
from oneflow_dist.containers import Counts
from oneflow_dist.data.mixture import load_mixture
from oneflow_dist.data.tokenizer import load_tokenizer
from oneflow_dist.objective import Kind
from oneflow_dist.process import process_of
from tools.benchmark import flops
from tools.benchmark.flops import (
    LAWS,
    PACKED,
    Mean,
    count_data,
    count_groups,
    expected,
    flops_of,
    in_gflop,
    keep_probs,
    of_pictures,
)
from tools.benchmark.objectives import with_objective
from tools.benchmark.result import Measured, Series

KINDS: tuple[Kind, ...] = get_args(Kind)
RIVALS = (
    "GFLOP by objective: the same documents through each objective's own noising and packs, on the same trunk, without "
    "condition dropout; `drawn / closed form` is how far their packs are from what was derived. Autoregressive: all "
    "rows, each of which sees its past and its image, the mark behind an image among them; <|eos|> is said without a "
    "row. Masked: all rows, each of which sees all; logits where a token is hidden."
)


def measure(config: Config, length: int, image_rows: int, documents: int, steps: int) -> Measured:
    """What `flops.measure` finds of insertion, then all objectives side by side; arguments are the same."""
    own = flops.measure(config, length, image_rows, documents, steps)
    beside = compare_objectives(config, length, image_rows, documents)
    of_data = count_by_objective(config, steps) if steps else {}
    return Measured(numbers=own.numbers, series=own.series | beside | of_data, notes=[*own.notes, RIVALS])


def compare_objectives(config: Config, length: int, image_rows: int, documents: int) -> Series:
    """GFLOP of a document in packs, by part; packs over closed forms; shares of what autoregression costs."""
    gflop: Series = {}
    agreement: Series = {}
    shares: Series = {}
    for is_interleaved, law in LAWS.items():
        drawn: dict[Kind, Mean] = {}
        for kind in KINDS:
            plain, shape = plain_config(config, kind), (length, image_rows, is_interleaved)
            count = min(documents, PACKED) if kind == "autoregressive" else documents  # all of which are alike
            drawn[kind] = Mean.of_counts(sum(count_groups(plain, *shape, count), Counts.zeros()))
            gflop[f"GFLOP, {law}, {kind}"] = in_gflop(flops_of(plain, drawn[kind]))
            agreement[f"drawn / closed form, {law}, {kind}"] = over(plain, drawn[kind], closed_form(plain, *shape))
        for kind in ("insertion", "masked"):
            shares[f"{kind} / autoregressive, {law}"] = over(config, drawn[kind], drawn["autoregressive"])
    return gflop | agreement | shares


def plain_config(config: Config, kind: Kind) -> Config:
    """The config by an objective, in the plainest way: of each document all, once, as long as it is."""
    plain = with_objective(config, kind)
    return replace(
        plain,
        objective=replace(plain.objective, copies_pieces=False, canvas_tokens=0),
        flow=replace(plain.flow, condition_dropout_prob=0.0, prompt_dropout_prob=0.0, bags="sampled"),
    )


def closed_form(config: Config, length: int, image_rows: int, is_interleaved: bool) -> Mean:
    """What a document holds in the mean, by the objective of a plain config."""
    if config.objective.kind == "insertion":
        return expected(config, length, image_rows, is_interleaved)
    if config.objective.kind == "masked":
        return masked(config, length, image_rows, is_interleaved)
    return autoregressive(config, length, image_rows)


def autoregressive(config: Config, length: int, image_rows: int) -> Mean:
    """Of a first token, a text, and an image with its token and its mark: n rows; `<|eos|>` has none.

    pairs = n (n + 1) / 2 + R (R - 1) / 2: causal, and those of the image that look ahead. All tokens but the first and
    the mark are said, `<|eos|>` too.
    """
    num_images = int(image_rows > 0)
    slots = 1 + length + 2 * num_images
    rows = slots + image_rows
    return Mean(
        rows=rows,
        pairs=(rows * (rows + 1) + image_rows * (image_rows - num_images)) / 2,
        filled=length + num_images + 1,
        slots=slots,
        patches=of_pictures(config, image_rows),
    )


def masked(config: Config, length: int, image_rows: int, is_interleaved: bool) -> Mean:
    """All tokens have rows, each row sees all; where images come like text, those whose tokens are hidden have none.

    Of hidden tokens, with keep = t: L / 2 for a time in [0, 1], L / 4 in [0, 2].
    """
    num_images = int(image_rows > 0)
    keep = keep_probs(config, is_interleaved)
    is_present = num_images * (keep if is_interleaved else np.ones_like(keep))
    slots = 1 + length + num_images
    pairs = (1.0 - is_present) * slots**2 + is_present * (slots + image_rows) ** 2
    filled = length * (1.0 - keep) + num_images - is_present
    present = float(is_present.mean())
    return Mean(
        rows=slots + image_rows * present,
        pairs=float(pairs.mean()),
        filled=float(filled.mean()),
        slots=slots,
        patches=of_pictures(config, image_rows * present),
    )


def over(config: Config, mean: Mean, other: Mean) -> dict[str, list[float]]:
    """What a document holds and costs, as a share of what another does."""
    cost, other_cost = (sum(flops_of(config, each).values()) for each in (mean, other))
    return {
        "rows": [mean.rows / other.rows],
        "pairs": [mean.pairs / other.pairs],
        "slots with logits": [mean.filled / other.filled],
        "FLOPs": [cost / other_cost],
    }


def count_by_objective(config: Config, steps: int) -> Series:
    """GFLOP of a document of the config's data, by part, under each objective that its mixture and vocabulary allow."""
    series: Series = {}
    for kind in KINDS:
        own = with_objective(config, kind)
        if can_learn(own):
            series[f"GFLOP, {config.data.mixture}, {kind}"] = in_gflop(
                flops_of(own, Mean.of_counts(count_data(own, steps)))
            )
    return series


def can_learn(config: Config) -> bool:
    """Whether its objective knows all tasks of the mixture, and has room for its marks."""
    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    process = process_of(config, tokenizer.eos, tokenizer.mark)
    tasks = {task for source in load_mixture(config.data.mixture) for task in source.tasks}
    has_room = tokenizer.vocab_size + process.num_marks <= config.model.vocab_size
    return has_room and tasks.isdisjoint(process.refused_tasks)
