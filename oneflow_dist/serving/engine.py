"""A process that has a model and writes documents for many users at once, each step of all of them in one pack."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait

from oneflow_dist.canvas import blank_canvas
from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import Tokenizer, load_tokenizer
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.pictures import check_decoders
from oneflow_dist.sampler import Sampler, generate
from oneflow_dist.serving.orders import Order
from oneflow_dist.serving.prompts import begin_order, knows_turns
from oneflow_dist.serving.settings import flat
from oneflow_dist.serving.telling import Event, Telling
from oneflow_dist.trained import config_at_home, find_checkpoint, load_weights, progress_of

Told = tuple[str, str, Event]  # of which order, the name of the event, its data


@dataclass(frozen=True, slots=True)
class Write:
    """Begin a document."""

    key: str
    order: Order


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop writing one, if it is still being written."""

    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What a model is."""

    config: Config
    step: int
    num_parameters: int
    has_turns: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one step was."""

    seconds: float
    num_rows: int
    num_documents: int


def run_engine(connection: Connection, run: str, device: int, num_threads: int) -> None:
    """Serve until the other end says None, or is gone. The first message tells what the model is, or why there is none.

    Args:
        device: number of the GPU, where there is one.
        num_threads: on CPUs.
    """
    import signal

    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, to all; the other end tells when it is over
    if (parent := multiprocessing.parent_process()) is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    torch.set_num_threads(num_threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(device)
    try:
        engine = open_engine(connection, run)
    except (ValueError, OSError) as error:
        connection.send(str(error))
        return
    try:
        connection.send(engine.card)
        engine.run()
    except (EOFError, ConnectionError):
        return  # nobody is there any more


def _end_with(sentinel: int) -> None:
    """End this process when another is gone, however long what it is doing would take."""
    wait([sentinel])
    os._exit(1)


def open_engine(connection: Connection, run: str) -> Engine:
    """A model that has written something, so that whatever takes long once has been done.

    On CPUs it computes in float64: then the sums of a pack, whatever else is in it, differ by far less than could
    change a token or a pixel, and a document is the same alone and among others. See docs/serving.md.

    Raises:
        ValueError: no complete checkpoint, or it is damaged.
    """
    folder = find_checkpoint(run)
    config = config_at_home(folder)
    check_decoders(config, progress_of(folder).data)
    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    model = load_weights(folder, config)
    if next(model.parameters()).device.type == "cpu":
        model = model.double()
    warm_up(model, config, tokenizer)
    step = progress_of(folder).step
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    has_turns = knows_turns(folder, config, tokenizer)
    card = Card(config=config, step=step, num_parameters=num_parameters, has_turns=has_turns)
    return Engine(connection, model, card, tokenizer)


def warm_up(model: OneFlow, config: Config, tokenizer: Tokenizer) -> None:
    """Write something short."""
    sampling = replace(config.sampling, steps=2, piece_steps={}, blocks=0, canvas_tokens=8)
    canvas = blank_canvas([], tokenizer, config.modality, 0, 0)
    generate(model, [canvas], replace(config, sampling=replace(sampling, max_rows=16)), tokenizer)


class Engine:
    """A model, and the documents that it is writing."""

    def __init__(self, connection: Connection, model: OneFlow, card: Card, tokenizer: Tokenizer):
        self.connection, self.card, self.config, self.tokenizer = connection, card, card.config, tokenizer
        self.sampler = Sampler(model, card.config, tokenizer)
        self.numbers = itertools.count()
        self.tellings: dict[int, tuple[str, Telling]] = {}  # by the sampler's number: key of the order, and document

    def run(self) -> None:
        """Write until None comes."""
        while self._receive():
            if self.sampler.writes:
                told, work = self._step()
                self.connection.send((told, work))

    def _receive(self) -> bool:
        """Take what has come, or wait for it where there is nothing to write; false: it is over."""
        told: list[Told] = []
        while self.connection.poll(None if not (self.sampler.writes or told) else 0):
            message = self.connection.recv()
            if message is None:
                return False
            if isinstance(message, Write):
                told += self._begin(message)
            else:
                self._cancel(message)
        if told:
            self.connection.send((told, None))
        return True

    def _begin(self, message: Write) -> list[Told]:
        number = next(self.numbers)
        try:
            canvas, sampling = begin_order(message.order, message.key, self.tokenizer, self.config, self.card.has_turns)
            telling = Telling(order=message.order, canvas=canvas, tokenizer=self.tokenizer)
            self.sampler.add(number, canvas, sampling)
        except ValueError as error:
            return [(message.key, "refused", {"message": str(error)})]
        is_known = self.config.objective.kind != "autoregressive" and not sampling.blocks
        max_steps = self.sampler.steps_left(number) if is_known else None
        begin = telling.begin() | {"settings": flat(sampling), "max_steps": max_steps}
        told = [(message.key, "begin", begin if message.order.follows == "steps" else {})]
        if canvas.is_done:
            return [*told, (message.key, "done", telling.done())]
        self.tellings[number] = message.key, telling
        return told

    def _cancel(self, message: Cancel) -> None:
        for number, (key, _) in [*self.tellings.items()]:
            if key == message.key:
                self.sampler.remove(number)
                del self.tellings[number]

    def _step(self) -> tuple[list[Told], Work]:
        begin, told = time.monotonic(), []
        try:
            step = self.sampler.step()
        except FloatingPointError as error:
            return self._fail_all(str(error)), Work(seconds=0, num_rows=0, num_documents=0)
        for number, change in step.changes.items():
            key, telling = self.tellings[number]
            telling.follow(change)
            steps_left = self.sampler.steps_left(number)
            if telling.order.follows == "steps":
                told.append((key, "step", telling.step(change, steps_left)))
            elif telling.order.follows == "text" and (parts := telling.final_parts()):
                told.append((key, "text", {"parts": parts}))
            if number not in self.sampler:
                told.append((key, "done", telling.done()))
                del self.tellings[number]
        seconds = time.monotonic() - begin
        return told, Work(seconds=seconds, num_rows=step.num_rows, num_documents=len(step.changes))

    def _fail_all(self, message: str) -> list[Told]:
        """End all documents that are being written."""
        told: list[Told] = []
        for number, (key, _) in self.tellings.items():
            self.sampler.remove(number)
            told.append((key, "failed", {"message": message}))
        self.tellings.clear()
        return told
