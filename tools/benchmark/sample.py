"""How fast documents are written: latency by length, and documents a second by batch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import torch

from oneflow_dist.canvas import Canvas, blank_canvas, parse_prompt
from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import Tokenizer, load_tokenizer
from oneflow_dist.model.initialization import initialize
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.sampler import generate_steps
from tools.benchmark.result import Measured, Series
from tools.benchmark.timing import synchronize

STEPS, SECONDS, RATE = "milliseconds of a step", "seconds until a batch is done", "documents per second"
MANY = 20.0  # a logit, and the log of a rate
NOTE = (
    "A case is documents written at once x rows that each may have at most. Prompts are those of [sampling] in turn, "
    "the seed is the run's: each round writes the same documents again. A step is one forward for all that are not "
    "done, with its drawing and inserting, from an idle device to an idle device."
)


def measure(
    model: OneFlow, config: Config, rows: Sequence[int], documents: Sequence[int], rounds: int, is_trained: bool
) -> Measured:
    """Every batch size at every length.

    Args:
        rows: that a document may have at most.
        documents: that are written at once.
        is_trained: else it is `first_model`.

    Raises:
        ValueError: a prompt is longer than `rows`.
    """
    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    device = next(model.parameters()).device
    series: Series = {STEPS: {}, SECONDS: {}, RATE: {}}
    single: Series = {}
    for most in rows:
        limited = replace(config, sampling=replace(config.sampling, max_rows=most))
        for count in documents:
            case = f"{count} x {most}"
            write(model, limited, tokenizer, count, device)  # warms up
            for _ in range(rounds):
                canvases, seconds = write(model, limited, tokenizer, count, device)
                series[STEPS].setdefault(case, []).extend(1e3 * step for step in seconds)
                series[SECONDS].setdefault(case, []).append(sum(seconds))
                series[RATE].setdefault(case, []).append(count / sum(seconds))
            written = sum(int((canvas.born > 0).sum()) for canvas in canvases)
            for what, value in (
                ("tokens written of a document", written / count),
                ("rows of a document", sum(canvas.num_rows for canvas in canvases) / count),
                ("steps", len(seconds)),
            ):
                single.setdefault(what, {})[case] = [value]
    weights = (
        "a checkpoint's average"
        if is_trained
        else "first ones: documents fill up at once, the most that so many rows cost"
    )
    return Measured(
        numbers={"weights": weights, "sampling.steps": config.sampling.steps}, series=single | series, notes=[NOTE]
    )


def write(
    model: OneFlow, config: Config, tokenizer: Tokenizer, count: int, device: torch.device
) -> tuple[list[Canvas], list[float]]:
    """Documents, done, and the seconds of each step."""
    prompts = [parse_prompt(prompt, tokenizer) for prompt in config.sampling.prompts]
    canvases = [
        blank_canvas(prompts[index % len(prompts)], tokenizer, config.modality, config.run.seed, index)
        for index in range(count)
    ]
    longest = max(canvas.num_rows for canvas in canvases)
    if longest > config.sampling.max_rows:
        raise ValueError(f"--rows: {config.sampling.max_rows}, but a prompt alone takes {longest} rows; raise it")
    seconds, start = [], time.perf_counter()
    for _ in generate_steps(model, canvases, config, tokenizer):
        synchronize(device)
        now = time.perf_counter()
        seconds.append(now - start)
        start = now
    return canvases, seconds


def first_model(config: Config, device: torch.device) -> OneFlow:
    """A model that knows nothing yet but that tokens are missing everywhere, so that it writes until no row is left."""
    model = OneFlow(config)
    initialize(model, config.run.seed, config.model.num_layers)
    with torch.no_grad():
        if model.heads.zero is not None and model.heads.rate is not None:
            model.heads.zero.bias.fill_(-MANY)
            model.heads.rate.bias.fill_(MANY)
    return model.to(device).eval()
