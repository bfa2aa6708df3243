"""Generation: text and pieces of many documents in one packed sequence, as the model's objective writes them."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from oneflow_dist.canvas import Canvas
from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.forward import Forward
from oneflow_dist.guidance import predict
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.writers.autoregressive import AutoRegressive
from oneflow_dist.writers.insertion import Insertion
from oneflow_dist.writers.masked import Masked
from oneflow_dist.writers.writer import Change, Writer

PACK_ROWS = 16384  # documents are packed to at most this for one forward


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of a generation: every document that is not done gets one."""

    number: int  # from 1
    num_rows: int  # that the model computed
    num_forwards: int
    changes: dict[int, Change]  # by the number of the document
    steps_left: int  # until the last document is done: at most, or where nobody knows, as many as it looks like


def generate(model: OneFlow, canvases: list[Canvas], config: Config, tokenizer: Tokenizer) -> list[Canvas]:
    """Finish the canvases, in place, as [sampling] says; `hit_cap` tells which of them were full."""
    for _ in generate_steps(model, canvases, config, tokenizer):
        pass
    return canvases


def generate_steps(
    model: OneFlow, canvases: list[Canvas], config: Config, tokenizer: Tokenizer, keeps_rows: bool = True
) -> Iterator[Step]:
    """Generate, and stop after every step for whoever wants to look at the canvases, or at what changed.

    Each step is one forward for the pieces and the text of all documents; see the writers for what it does.

    Args:
        keeps_rows: compute rows that cannot change any more once, where there are such; the result is the same without.

    Raises:
        FloatingPointError: what the model says is not finite; what went through that forward is as it was before.
        ValueError: two canvases have one key, or the objective cannot write what they ask for.
    """
    writer = writer_of(model, config, tokenizer)
    _check_keys(canvases)
    for canvas in canvases:
        writer.begin(canvas)
    forward, step = Forward(model, config.sees, keeps_rows), 0
    while active := [place for place, canvas in enumerate(canvases) if not canvas.is_done]:
        step += 1
        rows_before, forwards_before = forward.num_rows, forward.num_passes
        changes: dict[int, Change] = {}
        for group in _groups(canvases, active):
            own = [canvases[place] for place in group]
            changes |= zip(group, _step_group(forward, writer, own, config, step), strict=True)
        for canvas in (canvases[place] for place in active):
            if canvas.is_done and not writer.goes_on(canvas):
                forward.forget(canvas.key)
        yield Step(
            number=step,
            num_rows=forward.num_rows - rows_before,
            num_forwards=forward.num_passes - forwards_before,
            changes=changes,
            steps_left=max((writer.steps_left(canvas) for canvas in canvases if not canvas.is_done), default=0),
        )


def writer_of(model: OneFlow, config: Config, tokenizer: Tokenizer) -> Writer:
    """That of [objective]."""
    kinds: dict[str, Callable[[OneFlow, Config, Tokenizer], Writer]] = {
        "insertion": Insertion,
        "autoregressive": AutoRegressive,
        "masked": Masked,
    }
    return kinds[config.objective.kind](model, config, tokenizer)


@torch.no_grad()
def _step_group(forward: Forward, writer: Writer, canvases: list[Canvas], config: Config, step: int) -> list[Change]:
    """One step of the documents that go through one forward."""
    samples = [writer.snapshot(canvas) for canvas in canvases]
    prediction = predict(forward, samples, list(canvases[0].making), config.sampling, step)
    return writer.step(canvases, samples, prediction, step)


def _check_keys(canvases: list[Canvas]) -> None:
    keys = collections.Counter(canvas.key for canvas in canvases)
    if len(keys) < len(canvases):
        raise ValueError(f"two documents are called {keys.most_common(1)[0][0]}; give each canvas another index")


def _groups(canvases: list[Canvas], active: list[int]) -> Iterator[list[int]]:
    """Documents that fit in one forward, in order; a larger one goes alone."""
    group: list[int] = []
    rows = 0
    for place in active:
        if group and rows + canvases[place].num_rows > PACK_ROWS:
            yield group
            group, rows = [], 0
        group.append(place)
        rows += canvases[place].num_rows
    if group:
        yield group
