"""Generation: text and pieces of many documents in one packed sequence, as the model's objective writes them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from oneflow_dist.canvas import Canvas
from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.forward import Forward
from oneflow_dist.guidance import predict
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.sampling import SamplingConfig
from oneflow_dist.writers.autoregressive import AutoRegressive
from oneflow_dist.writers.insertion import Insertion
from oneflow_dist.writers.masked import Masked
from oneflow_dist.writers.writer import Change, Writer, say_of

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
    sampler = Sampler(model, config, tokenizer, keeps_rows)
    for number, canvas in enumerate(canvases):
        sampler.add(number, canvas, config.sampling)
    while sampler.writes:
        yield sampler.step()


class Sampler:
    """Documents that are written together, each as its own settings say; they may come and go between two steps.

    What becomes of one depends on the others by the rounding of the forward that they share, and by nothing else.
    """

    def __init__(self, model: OneFlow, config: Config, tokenizer: Tokenizer, keeps_rows: bool = True):
        self._model, self._config, self._tokenizer = model, config, tokenizer
        self._forward = Forward(model, config.sees, keeps_rows)
        self._writers: list[Writer] = []  # one for all documents of the same settings
        self._documents: dict[int, tuple[Canvas, Writer]] = {}  # by their numbers; those that are not done
        self._num_steps = 0

    @property
    def writes(self) -> bool:
        """Whether a document is not done."""
        return bool(self._documents)

    def __contains__(self, number: int) -> bool:
        """Whether a document is still being written."""
        return number in self._documents

    def add(self, number: int, canvas: Canvas, sampling: SamplingConfig) -> None:
        """A document takes part from the next step on.

        Raises:
            ValueError: another one has its key, or the objective cannot write what it asks for.
        """
        if canvas.key in (other.key for other, _ in self._documents.values()):
            raise ValueError(f"two documents are called {canvas.key}; give each canvas another index")
        writer = next((own for own in self._writers if own.sampling == sampling), None)
        if writer is None:
            writer = writer_of(self._model, replace(self._config, sampling=sampling), self._tokenizer)
        writer.begin(canvas)
        if not canvas.is_done:
            self._documents[number] = canvas, writer
            if writer not in self._writers:
                self._writers.append(writer)

    def remove(self, number: int) -> None:
        """A document leaves, done or not."""
        canvas, writer = self._documents.pop(number)
        self._forward.forget(canvas.key)
        if not any(other is writer for _, other in self._documents.values()):
            self._writers.remove(writer)

    def steps_left(self, number: int) -> int:
        """Of a document: at most, or where nobody knows, as many as it looks like; 0 when it has left."""
        if number not in self._documents:
            return 0
        canvas, writer = self._documents[number]
        return writer.steps_left(canvas)

    def step(self) -> Step:
        """Write on; who is done by then has left.

        Raises:
            FloatingPointError: what the model says is not finite; what went through that forward is as it was before.
        """
        self._num_steps += 1
        rows_before, forwards_before = self._forward.num_rows, self._forward.num_passes
        changes: dict[int, Change] = {}
        for group in self._groups():
            changes |= zip(group, self._step_group([self._documents[number] for number in group]), strict=True)
        for number, (canvas, writer) in [*self._documents.items()]:
            if canvas.is_done and not writer.goes_on(canvas):
                self.remove(number)
        return Step(
            number=self._num_steps,
            num_rows=self._forward.num_rows - rows_before,
            num_forwards=self._forward.num_passes - forwards_before,
            changes=dict(sorted(changes.items())),
            steps_left=max(map(self.steps_left, self._documents), default=0),
        )

    def _groups(self) -> Iterator[list[int]]:
        """Numbers of documents that fit in one forward, those of one writer side by side; a larger one goes alone."""
        group: list[int] = []
        rows = 0
        for number in sorted(self._documents, key=lambda number: self._writers.index(self._documents[number][1])):
            canvas, _ = self._documents[number]
            if group and rows + canvas.num_rows > PACK_ROWS:
                yield group
                group, rows = [], 0
            group.append(number)
            rows += canvas.num_rows
        if group:
            yield group

    @torch.no_grad()
    def _step_group(self, documents: list[tuple[Canvas, Writer]]) -> list[Change]:
        """One step of the documents that go through one forward."""
        samples = [writer.snapshot(canvas) for canvas, writer in documents]
        settings = [writer.sampling for _, writer in documents]
        prediction = predict(self._forward, samples, list(self._config.modality), settings, self._num_steps)
        changes: list[Change] = []
        for writer, own in itertools.groupby(documents, key=lambda document: document[1]):
            canvases = [canvas for canvas, _ in own]
            those = slice(len(changes), len(changes) + len(canvases))
            for canvas in canvases:
                canvas.num_steps += 1
            changes += writer.step(canvases, samples[those], say_of(prediction, samples, those))
        return changes


def writer_of(model: OneFlow, config: Config, tokenizer: Tokenizer) -> Writer:
    """That of [objective]."""
    kinds: dict[str, Callable[[OneFlow, Config, Tokenizer], Writer]] = {
        "insertion": Insertion,
        "autoregressive": AutoRegressive,
        "masked": Masked,
    }
    return kinds[config.objective.kind](model, config, tokenizer)
