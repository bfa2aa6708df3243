"""What a document costs that is written block by block, and one that is written as a whole, by its length."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from oneflow_dist.canvas import Canvas, blank_canvas
from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import Tokenizer, load_tokenizer
from oneflow_dist.forward import Forward
from oneflow_dist.model.oneflow import OneFlow
from tools.benchmark.result import Measured, Series
from tools.benchmark.timing import synchronize

SECONDS, ROWS, STEPS = "seconds until a document is done", "rows computed for a document", "steps of a document"
BLOCKS, WHOLE, AS_MANY = "in blocks", "whole", "whole, in as many steps"
BLOCK_ROWS = 64
FEWEST, MOST, ENOUGH_SECONDS = 3, 7, 5.0  # rounds of a length, and after how long no other begins


def measure(model: OneFlow, config: Config, lengths: Sequence[int], steps: int) -> Measured:
    """Documents of every length, both ways in turn.

    Args:
        lengths: in rows.
        steps: of a block, and of a document that is written as a whole.
    """
    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    series: Series = {SECONDS: {}, ROWS: {}, STEPS: {}}
    write(model, config, tokenizer, ends_of(BLOCKS, min(lengths)), steps)  # warms up
    for length in lengths:
        start = time.perf_counter()
        for number in range(MOST):
            if number >= FEWEST and time.perf_counter() - start > ENOUGH_SECONDS:
                break
            for way in (BLOCKS, WHOLE):
                name, ends = f"{way} x {length}", ends_of(way, length)
                seconds, rows = write(model, config, tokenizer, ends, steps)
                series[SECONDS].setdefault(name, []).append(seconds)
                series[ROWS][name], series[STEPS][name] = [float(rows)], [float(len(ends) * steps)]
        name, num_steps = f"{AS_MANY} x {length}", len(ends_of(BLOCKS, length)) * steps
        series[ROWS][name] = [float(sum(lengths_before_steps(1, length, num_steps)))]
        series[STEPS][name] = [float(num_steps)]
    note = (
        f"Lengths are forced: random tokens appear evenly over {steps} steps of each block of {BLOCK_ROWS} rows, or of "
        "the whole document, alone in its forwards, without drawing. A document as a whole in as many steps as its "
        "blocks have together is counted, not timed: there a step adds as few tokens."
    )
    return Measured(series=series, notes=[note])


def ends_of(way: str, length: int) -> list[int]:
    """Where the blocks of a document end, in rows."""
    return [*range(BLOCK_ROWS, length, BLOCK_ROWS), length] if way == BLOCKS else [length]


def lengths_before_steps(start: int, end: int, steps: int) -> list[int]:
    """Rows of a text before each step, which grows evenly."""
    return [start + (end - start) * step // steps for step in range(steps)]


@torch.no_grad()
def write(model: OneFlow, config: Config, tokenizer: Tokenizer, ends: Sequence[int], steps: int) -> tuple[float, int]:
    """Seconds of a document that is filled by a script, and rows that were computed."""
    device = next(model.parameters()).device
    forward = Forward(model, config.sees)
    canvas = blank_canvas([], tokenizer, config.modality, config.run.seed, 0)
    synchronize(device)
    start = time.perf_counter()
    for number, end in enumerate(ends):
        if number:
            canvas.begin_block()
        first = len(canvas.tokens)
        for step, grown in enumerate([*lengths_before_steps(first, end, steps)[1:], end]):
            canvas.text_time = step / steps
            forward([canvas.snapshot()], [(canvas.key, "")])
            grow(canvas, first, grown, tokenizer)
    synchronize(device)
    return time.perf_counter() - start, forward.num_rows


def grow(canvas: Canvas, first: int, length: int, tokenizer: Tokenizer) -> None:
    """Insert random tokens evenly behind the last of the `first` tokens and those after it."""
    open_slots, missing = len(canvas.tokens) - first + 1, length - len(canvas.tokens)
    slots = first - 1 + np.arange(missing) * open_slots // max(1, missing)
    canvas.insert(slots, canvas.rng.integers(tokenizer.bos, size=missing), step=1)
