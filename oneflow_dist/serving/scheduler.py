"""Who is served next: the queue of each model, its processes, and what is told to whom."""

from __future__ import annotations

import asyncio
import collections
import multiprocessing
import queue
import secrets
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

from oneflow_dist.serving.engine import Cancel, Card, Told, Work, Write, run_engine
from oneflow_dist.serving.orders import Limits, Order
from oneflow_dist.serving.pictures import encode_event
from oneflow_dist.serving.telling import Event

LAST = ("done", "refused", "failed")  # events after which nothing comes
MOST_WAITING_EVENTS = 8192  # of a client that reads so slowly that it will never catch up
TOO_SLOW = "more events wait than are kept; read the stream as it comes, or ask without stream"


class OverloadedError(Exception):
    """Nobody else can wait, or nobody is there to write."""


@dataclass(kw_only=True, eq=False)
class Ticket:
    """A request on its way: where it stands, and what it has not been told yet."""

    key: str
    model: str
    order: Order
    backlog: int  # of events, from which on pictures in the making are left out
    arrived: float = field(default_factory=time.monotonic)
    begun: float | None = None
    position: int = -1
    waiting: collections.deque[tuple[str, Event]] = field(default_factory=collections.deque)
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, name: str, event: Event) -> None:
        """For whoever follows."""
        if name == "step" and len(self.waiting) >= self.backlog:
            event = {**event, "pictures": {}}
        self.waiting.append((name, event))
        self.wake.set()

    async def events(self) -> AsyncIterator[tuple[str, Event]]:
        """What is told, until the last."""
        while True:
            while self.waiting:
                name, event = self.waiting.popleft()
                yield name, event
                if name in LAST:
                    return
            self.wake.clear()
            await self.wake.wait()


@dataclass(kw_only=True, eq=False)
class Engine:
    """A process that writes, seen from here."""

    model: str
    process: multiprocessing.process.BaseProcess
    connection: Connection
    is_alive: bool = True
    writing: dict[str, Ticket] = field(default_factory=dict)
    outbox: queue.SimpleQueue[Write | Cancel | None] = field(default_factory=queue.SimpleQueue)


class Scheduler:
    """First come, first served; a model with several processes gives each document to the idlest.

    All methods are called from one event loop; threads carry messages from and to the processes.
    """

    def __init__(self, limits: Limits, watch: Callable[[str, Work], None]):
        """`watch` is told of every step of a model."""
        self.limits, self.watch = limits, watch
        self.engines: list[Engine] = []
        self.cards: dict[str, Card] = {}
        self.waiting: dict[str, collections.deque[Ticket]] = {}

    def start(self, models: dict[str, str], devices: int, num_threads: int) -> None:
        """Start a process for each model on each device, and wait until all can write.

        Args:
            models: run folders by name.

        Raises:
            ValueError: a model cannot be loaded.
        """
        context = multiprocessing.get_context("spawn")
        for device in range(devices):
            for name, run in models.items():
                here, there = context.Pipe()
                own = (there, run, device, num_threads)
                process = context.Process(target=run_engine, args=own, name=f"{name} {device}", daemon=True)
                with _deaf_to_interrupts():
                    process.start()
                there.close()
                self.engines.append(Engine(model=name, process=process, connection=here))
                self.waiting[name] = collections.deque()
        try:
            for engine in self.engines:
                self.cards[engine.model] = _receive_card(engine)
        except (ValueError, KeyboardInterrupt):
            for engine in self.engines:
                engine.process.terminate()
            raise

    def listen(self) -> None:
        """From now on, in the running event loop, messages are carried."""
        loop = asyncio.get_running_loop()
        for engine in self.engines:
            threading.Thread(target=_read, args=(engine, loop, self), daemon=True).start()
            threading.Thread(target=_write, args=(engine,), daemon=True).start()

    def stop(self) -> None:
        """End all processes."""
        for engine in self.engines:
            engine.outbox.put(None)
        for engine in self.engines:
            engine.process.join(timeout=2.0)
            engine.process.terminate()

    def submit(self, model: str, order: Order) -> Ticket:
        """Stand in line.

        Raises:
            OverloadedError: too many wait, or no process of this model is left.
        """
        if not any(engine.is_alive for engine in self.engines if engine.model == model):
            raise OverloadedError(f"{model}: its process is gone; whoever runs the server has to start it again")
        line = self.waiting[model]
        if len(line) >= self.limits.waiting and self._idlest(model) is None:
            raise OverloadedError(f"{len(line)} requests are waiting already; try again later")
        ticket = Ticket(key=f"gen-{secrets.token_hex(8)}", model=model, order=order, backlog=self.limits.backlog)
        line.append(ticket)
        self._dispatch(model)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Nobody wants it any more; what has ended is left alone."""
        if ticket in self.waiting[ticket.model]:
            self.waiting[ticket.model].remove(ticket)
        for engine in self.engines:
            if engine.writing.pop(ticket.key, None) is not None:
                engine.outbox.put(Cancel(ticket.key))
        self._dispatch(ticket.model)

    def num_waiting(self, model: str) -> int:
        return len(self.waiting[model])

    def num_writing(self, model: str) -> int:
        return sum(len(engine.writing) for engine in self.engines if engine.model == model)

    def states(self) -> dict[str, str]:
        """Of each model: "ok", "degraded" (some of its processes are gone) or "failed"."""
        found = {}
        for model in self.cards:
            alive = [engine.is_alive for engine in self.engines if engine.model == model]
            found[model] = "ok" if all(alive) else "degraded" if any(alive) else "failed"
        return found

    def _dispatch(self, model: str) -> None:
        """Begin what there is room for, and tell the others where they stand."""
        line = self.waiting[model]
        while line and (engine := self._idlest(model)) is not None:
            ticket = line.popleft()
            ticket.begun = time.monotonic()
            engine.writing[ticket.key] = ticket
            engine.outbox.put(Write(ticket.key, ticket.order))
        for position, ticket in enumerate(line, start=self.num_writing(model)):
            if ticket.position != position:
                ticket.position = position
                ticket.tell("queued", {"position": position})

    def _idlest(self, model: str) -> Engine | None:
        """The process that has the fewest documents; none where all have as many as they may."""
        own = [engine for engine in self.engines if engine.model == model and engine.is_alive]
        engine = min(own, key=lambda each: len(each.writing), default=None)
        return engine if engine is not None and len(engine.writing) < self.limits.writing else None

    def _take(self, engine: Engine, told: Sequence[Told], work: Work | None) -> None:
        """What a process says."""
        for key, name, event in told:
            ticket = engine.writing.get(key)
            if ticket is None:
                continue  # cancelled meanwhile
            ticket.tell(name, event)
            if name in LAST:
                del engine.writing[key]
            elif len(ticket.waiting) > MOST_WAITING_EVENTS:
                ticket.tell("failed", {"message": TOO_SLOW})
                self.cancel(ticket)
        if work is not None:
            self.watch(engine.model, work)
        self._dispatch(engine.model)

    def _lose(self, engine: Engine) -> None:
        """A process is gone, and what it was writing with it; what waits goes to another, if there is one."""
        engine.is_alive = False
        message = {"message": f"{engine.model}: its process has ended while it wrote this; try again"}
        lost, engine.writing = engine.writing, {}
        for ticket in lost.values():
            ticket.tell("failed", message)
        if self.states()[engine.model] == "failed":
            line, self.waiting[engine.model] = self.waiting[engine.model], collections.deque()
            for ticket in line:
                ticket.tell("failed", message)
        self._dispatch(engine.model)


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Whatever is started meanwhile is, from its first line on: a terminal interrupts all, and we tell the others."""
    if threading.current_thread() is not threading.main_thread():  # which alone may set that
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _receive_card(engine: Engine) -> Card:
    try:
        card: Card | str = engine.connection.recv()
    except EOFError:
        raise ValueError(f"{engine.model}: its process ended while it loaded; see above") from None
    if isinstance(card, str):
        raise ValueError(card)
    return card


def _read(engine: Engine, loop: asyncio.AbstractEventLoop, scheduler: Scheduler) -> None:
    """Carry what a process says into the event loop, pictures encoded on the way."""
    try:
        while True:
            told, work = engine.connection.recv()
            for _, _, event in told:
                encode_event(event)
            loop.call_soon_threadsafe(scheduler._take, engine, told, work)
    except (EOFError, OSError):
        if not loop.is_closed():
            loop.call_soon_threadsafe(scheduler._lose, engine)


def _write(engine: Engine) -> None:
    """Carry orders to a process, which takes them between two steps."""
    try:
        while True:
            message = engine.outbox.get()
            engine.connection.send(message)
            if message is None:
                return
    except OSError:
        return  # it is gone, as `_read` finds out
