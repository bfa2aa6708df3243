"""How long documents take that are written token by token, and by insertion, by their text and their images."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from oneflow_dist.canvas import Canvas, blank_canvas
from oneflow_dist.config import Config
from oneflow_dist.containers import NoisySample, Prediction
from oneflow_dist.data.tokenizer import Tokenizer, load_tokenizer
from oneflow_dist.forward import Forward
from oneflow_dist.guidance import predict
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.sampling import SamplingConfig
from oneflow_dist.writers.autoregressive import AutoRegressive
from oneflow_dist.writers.drawing import draw_tokens, probs_of
from oneflow_dist.writers.insertion import Insertion, draw_fires
from oneflow_dist.writers.writer import Change, Writer, step_size, velocities_of
from tools.benchmark.latency_plan import ANEW, CACHED, INSERTION, Shape, Way, case_of
from tools.benchmark.objectives import with_objective
from tools.benchmark.prompts import random_model, target_of
from tools.benchmark.result import Measured, Series
from tools.benchmark.timing import synchronize

SECONDS, FORWARDS, ROWS = "seconds until the documents are done", "forwards", "rows computed for a document"
MOST_ANEW = 100  # text tokens of a document that is written without cache
NO_LIMIT = 2**31  # of rows
NOTE = (
    "A case is images in a document, documents written at once, and the way x text tokens; behind a prompt of text. "
    "Weights are random, so a script says what appears; all that generation does for it is done: snapshots, forwards "
    "without guidance, heads, tokens drawn and their chances, velocities, advancing. The ways take turns. By insertion "
    "tokens appear evenly over the steps and images at even times, each of which then moves for as many steps; rows of "
    "the prompt are computed once. Autoregressive: a forward for each token, at an image as many steps of it, then its "
    "clean copy; rows that are done are computed once, or, without cache, all in every forward, of texts of at most "
    f"{MOST_ANEW} tokens: longer ones would take too long. Blocks are not compiled."
)


class ScriptedText(AutoRegressive):
    """Draws as always, and then writes what the script says."""

    def __init__(self, model: OneFlow, config: Config, tokenizer: Tokenizer, script: Sequence[int]):
        super().__init__(model, config, tokenizer)
        self.script = script

    def _append(self, canvas: Canvas, token: np.int64, prob: np.floating) -> Change:
        written = len(canvas.tokens) - canvas.block_ends[0]
        return super()._append(canvas, np.int64(self.script[written]), prob)


class ScriptedInsertion(Insertion):
    """Draws as always, but in so many slots and of so many tokens as the script says, which then writes its own."""

    def __init__(
        self, model: OneFlow, config: Config, tokenizer: Tokenizer, script: Sequence[tuple[int, int]], image: int
    ):
        super().__init__(model, config, tokenizer)
        self.script, self.image = script, image

    def step(self, canvases: list[Canvas], samples: list[NoisySample], prediction: Prediction) -> list[Change]:
        """See `Writer.step`; slots may get several tokens, since few are open at first."""
        step = canvases[0].num_steps  # they are all alike
        text, images = self.script[step - 1] if step <= len(self.script) else (0, 0)
        draw_fires(canvases, prediction, self.sampling, self.schedule)
        slots = [spread_over(np.flatnonzero(canvas.is_open), text + images) for canvas in canvases]
        first = np.cumsum([0, *(len(canvas.tokens) for canvas in canvases)])
        rows = np.concatenate([own + start for own, start in zip(slots, first, strict=False)])
        hidden = prediction.slot_hidden[torch.from_numpy(rows).to(prediction.slot_hidden.device)]
        generators = [canvas.rng for canvas in canvases for _ in range(text + images)]
        drawn = draw_tokens(self.model, hidden, generators, self.sampling, self.tokenizer.vocab_size)
        probs = np.split(probs_of(self.model, hidden, drawn), len(canvases))
        changes, nothing = [], np.zeros(0, dtype=np.int64)
        for canvas, own, prob, velocities in zip(
            canvases, slots, probs, velocities_of(samples, prediction), strict=True
        ):
            tokens = np.append(canvas.rng.integers(self.tokenizer.bos, size=text), np.full(images, self.image))
            canvas.advance(velocities, step_size(canvas, self.sampling), self.sampling, step)
            canvas.insert(own, tokens, step)
            changes.append(Change.of(canvas, own + 1 + np.arange(len(own)), tokens, prob, nothing))
        return changes


def spread_over(slots: np.ndarray, count: int) -> np.ndarray:
    """So many of them, evenly, in order."""
    return slots[np.arange(count) * len(slots) // max(1, count)]


@dataclass(frozen=True, slots=True)
class Side:
    """A model that writes in one way."""

    way: Way
    model: OneFlow
    config: Config
    tokenizer: Tokenizer

    def writer(self, shape: Shape) -> Writer:
        """That writes documents of this shape."""
        own, kind = (self.model, self.config, self.tokenizer), target_of(self.config)
        image = self.tokenizer.piece_of[kind] if kind else self.tokenizer.mark  # which then no script has
        if self.way == INSERTION:
            return ScriptedInsertion(*own, shape.appearing, image)
        text = np.random.default_rng(self.config.run.seed).integers(self.tokenizer.bos, size=len(shape.order)).tolist()
        script = [image if is_image else token for is_image, token in zip(shape.order, text, strict=True)]
        return ScriptedText(*own, [*script, self.tokenizer.eos])

    @torch.no_grad()
    def write(self, shape: Shape, count: int) -> tuple[float, int, int]:
        """Seconds until so many documents are done, forwards, and rows that were computed."""
        device, writer = next(self.model.parameters()).device, self.writer(shape)
        forward = Forward(self.model, self.config.sees, keeps=self.way != ANEW)
        canvases = [self._canvas(shape, index) for index in range(count)]
        synchronize(device)
        start, step = time.perf_counter(), 0
        while not canvases[0].is_done:  # they are all alike
            step += 1
            for canvas in canvases:
                canvas.num_steps = step
            samples = [writer.snapshot(canvas) for canvas in canvases]
            prediction = predict(forward, samples, list(canvases[0].making), [self.config.sampling] * count, step)
            writer.step(canvases, samples, prediction)
        synchronize(device)
        return time.perf_counter() - start, forward.num_passes, forward.num_rows

    def _canvas(self, shape: Shape, index: int) -> Canvas:
        rng = np.random.default_rng([self.config.run.seed, index])
        prompt = rng.integers(self.tokenizer.bos, size=shape.prompt).tolist()
        return blank_canvas(prompt, self.tokenizer, self.config.modality, self.config.run.seed, index)


def measure(
    config: Config, shapes: Sequence[Shape], documents: Sequence[int], rounds: int, device: torch.device
) -> Measured:
    """Every shape in every way, so many documents at once; in each round all ways in turn.

    Raises:
        ValueError: see `sides_of`.
    """
    sides = sides_of(config, shapes[0].steps, device)
    series: Series = {SECONDS: {}, FORWARDS: {}, ROWS: {}}
    for side in sides:
        side.write(replace(shapes[0], text=min(shapes[0].text, 10)), 1)  # warms up
    for shape in shapes:
        for count in documents:
            for _ in range(rounds):
                for side in sides:
                    if side.way == ANEW and shape.text > MOST_ANEW:
                        continue
                    seconds, forwards, rows = side.write(shape, count)
                    name = case_of(side.way, shape, count)
                    series[SECONDS].setdefault(name, []).append(seconds)
                    series[FORWARDS][name], series[ROWS][name] = [float(forwards)], [rows / count]
    return Measured(series=series, notes=[NOTE])


def shapes_of(config: Config, texts: Sequence[int], images: Sequence[int], prompt: int, steps: int) -> list[Shape]:
    """All documents that are asked for.

    Raises:
        ValueError: images, but the config has none that can be generated.
    """
    kind = target_of(config)
    if any(images) and kind is None:
        raise ValueError("--images: are asked for, but the config has no modality that can be generated; name 0")
    size = config.modality[kind].num_rows if kind else 0
    plain = Shape(prompt=prompt, text=0, images=0, image_rows=size, steps=steps)
    return [replace(plain, text=text, images=number) for number in images for text in texts]


def sides_of(config: Config, steps: int, device: torch.device) -> list[Side]:
    """Both models, of the same trunk, as they write in each way.

    Raises:
        ValueError: the vocabulary has no room for the mark that ends an image.
    """
    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    if tokenizer.mark >= config.model.vocab_size:
        raise ValueError(
            f"model.vocab_size: is {config.model.vocab_size}, all of which are tokens; an autoregressive model needs "
            "one more, which ends an image: raise it"
        )
    inserting = replace(config, sampling=_even(config.sampling, steps))
    writing = with_objective(inserting, "autoregressive")
    writing = replace(writing, objective=replace(writing.objective, copies_pieces=True))
    by_insertion, token_by_token = ((random_model(each, device), each, tokenizer) for each in (inserting, writing))
    return [Side(INSERTION, *by_insertion), Side(CACHED, *token_by_token), Side(ANEW, *token_by_token)]


def _even(sampling: SamplingConfig, steps: int) -> SamplingConfig:
    """All steps are alike, of text and of images, and nothing but the script ends a document."""
    even = replace(sampling, steps=steps, time_power=1.0, shift=1.0, piece_steps={}, max_rows=NO_LIMIT)
    return replace(even, guidance={}, corrections=0, blocks=0)
