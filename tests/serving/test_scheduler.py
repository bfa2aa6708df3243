"""Who is served next, with stand-ins for the processes that write."""

from __future__ import annotations

import asyncio
import collections
import multiprocessing
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from oneflow_dist.config import Config
from oneflow_dist.serving.engine import Card, Work, Write
from oneflow_dist.serving.orders import Limits, Order
from oneflow_dist.serving.scheduler import Engine, OverloadedError, Scheduler, Ticket


def scheduler(config: Config, models: list[str], **limits: Any) -> Scheduler:
    """With an engine for each of these names, which does nothing by itself."""
    own = Scheduler(Limits(**limits), lambda *_: None)
    for name in models:
        engine = Engine(model=name, process=multiprocessing.Process(), connection=multiprocessing.Pipe()[0])
        own.engines.append(engine)
        own.waiting.setdefault(name, collections.deque())
        own.cards[name] = Card(config=config, step=1, num_parameters=1, has_turns=False)
    return own


def sent(engine: Engine) -> list[Any]:
    found = []
    while not engine.outbox.empty():
        found.append(engine.outbox.get())
    return found


def events_of(ticket: Ticket) -> list[tuple[str, Any]]:
    found, ticket.waiting = list(ticket.waiting), type(ticket.waiting)()
    return found


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


@pytest.fixture
def order(config: Config) -> Order:
    return Order(sampling=config.sampling, seed=0)


def test_first_come_first_served_and_who_waits_knows_their_place(config: Config, order: Order) -> None:
    async def once() -> None:
        own = scheduler(config, ["a"], writing=2)
        (engine,) = own.engines
        tickets = [own.submit("a", order) for _ in range(5)]
        assert [message.key for message in sent(engine)] == [ticket.key for ticket in tickets[:2]]
        assert [events_of(ticket) for ticket in tickets[:2]] == [[], []]
        assert [events_of(ticket)[-1] for ticket in tickets[2:]] == [("queued", {"position": n}) for n in (2, 3, 4)]
        own._take(engine, [(tickets[0].key, "done", {})], None)
        assert [message.key for message in sent(engine)] == [tickets[2].key]
        assert events_of(tickets[0]) == [("done", {})]
        assert [events_of(ticket) for ticket in tickets[3:]] == [[("queued", {"position": n})] for n in (2, 3)]
        own._take(engine, [(tickets[1].key, "step", {})], None)
        assert events_of(tickets[3]) == []  # nothing has changed

    run(once)


def test_who_leaves_makes_room_and_moves_others_up(config: Config, order: Order) -> None:
    async def once() -> None:
        own = scheduler(config, ["a"], writing=1)
        (engine,) = own.engines
        writing, waiting, last = (own.submit("a", order) for _ in range(3))
        events_of(last)
        own.cancel(waiting)
        assert events_of(last) == [("queued", {"position": 1})]
        own.cancel(writing)
        kinds = [type(message).__name__ for message in sent(engine)]
        assert kinds == ["Write", "Cancel", "Write"]
        assert own.num_waiting("a") == 0
        own._take(engine, [(writing.key, "step", {})], None)  # that was on its way
        assert events_of(writing) == []
        own.cancel(last)
        own.cancel(last)
        assert own.num_writing("a") == 0

    run(once)


def test_nobody_has_to_wait_where_nobody_may(config: Config, order: Order) -> None:
    async def once() -> None:
        own = scheduler(config, ["a"], writing=1, waiting=0)
        ticket = own.submit("a", order)
        with pytest.raises(OverloadedError):
            own.submit("a", order)
        own._take(own.engines[0], [(ticket.key, "done", {})], None)
        own.submit("a", order)

    run(once)


def test_a_place_counts_the_documents_of_all_processes(config: Config, order: Order) -> None:
    async def once() -> None:
        own = scheduler(config, ["a", "a"], writing=2)
        *_, last = (own.submit("a", order) for _ in range(5))
        assert events_of(last) == [("queued", {"position": 4})]
        waiting = own.submit("a", order)
        own._lose(own.engines[0])
        assert events_of(last) == [("queued", {"position": 2})]
        assert events_of(waiting)[-1] == ("queued", {"position": 3})

    run(once)


def test_no_more_wait_than_allowed(config: Config, order: Order) -> None:
    async def once() -> None:
        own = scheduler(config, ["a"], writing=1, waiting=1)
        own.submit("a", order)
        own.submit("a", order)
        with pytest.raises(OverloadedError, match="1 requests are waiting"):
            own.submit("a", order)

    run(once)


def test_processes_of_one_model_share_its_work_and_no_others(config: Config, order: Order) -> None:
    async def once() -> None:
        own = scheduler(config, ["a", "b", "a"], writing=4)
        for _ in range(6):
            own.submit("a", order)
        assert [len(engine.writing) for engine in own.engines] == [3, 0, 3]
        assert all(isinstance(message, Write) for message in sent(own.engines[2]))

    run(once)


def test_a_lost_process_takes_its_documents_with_it_and_what_waits_goes_to_another(
    config: Config, order: Order
) -> None:
    async def once() -> None:
        own = scheduler(config, ["a", "a"], writing=1)
        one, other, waiting = (own.submit("a", order) for _ in range(3))
        events_of(waiting)
        own._lose(own.engines[0])
        assert events_of(one)[-1][0] == "failed"
        assert own.states() == {"a": "degraded"}
        assert events_of(waiting) == [("queued", {"position": 1})]
        own._take(own.engines[1], [(other.key, "done", {})], None)
        assert waiting.key in own.engines[1].writing
        last = own.submit("a", order)
        own._lose(own.engines[1])
        assert events_of(waiting)[-1][0] == events_of(last)[-1][0] == "failed"
        assert own.states() == {"a": "failed"}
        with pytest.raises(OverloadedError, match="process is gone"):
            own.submit("a", order)

    run(once)


def test_a_slow_reader_gets_every_step_but_no_pictures_and_at_last_nothing(
    config: Config, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oneflow_dist.serving.scheduler.MOST_WAITING_EVENTS", 10)

    async def once() -> None:
        own = scheduler(config, ["a"], backlog=3)
        (engine,) = own.engines
        ticket = own.submit("a", order)
        for number in range(10):
            own._take(engine, [(ticket.key, "step", {"step": number, "pictures": {"image": {0: "x"}}})], None)
        assert [event["step"] for _, event in ticket.waiting] == list(range(10))
        assert [bool(event["pictures"]) for _, event in ticket.waiting] == [True] * 3 + [False] * 7
        own._take(engine, [(ticket.key, "step", {"step": 10, "pictures": {}})], None)
        assert ticket.waiting[-1][0] == "failed"
        assert own.num_writing("a") == 0

    run(once)


def test_messages_go_through_pipes_in_order_and_a_pipe_that_ends_is_a_lost_process(
    config: Config, order: Order
) -> None:
    here, there = multiprocessing.Pipe()
    received: list[Any] = []

    def write() -> None:  # in the place of the process
        pixels = np.zeros((2, 2), dtype=np.uint8)
        received.append(there.recv())
        key = received[0].key
        there.send(([(key, "begin", {"pieces": {}})], None))
        there.send(
            ([(key, "step", {"pictures": {"image": {0: pixels}}})], Work(seconds=1.0, num_rows=2, num_documents=1))
        )
        there.send(([(key, "done", {}), ("of somebody who has gone", "done", {})], None))
        received.append(there.recv())
        there.close()

    async def once() -> None:
        worked: list[tuple[str, Work]] = []
        own = scheduler(config, ["a"])
        own.watch = lambda *work: worked.append(work)
        own.engines[0].connection = here
        own.listen()
        ticket, other = own.submit("a", order), None
        found = []
        async with asyncio.timeout(10):
            async for name, event in ticket.events():
                found.append((name, event))
            other = own.submit("a", order)
            lost = [told async for told in other.events()]
        assert [name for name, _ in found] == ["begin", "step", "done"]
        assert found[1][1]["pictures"]["image"][0].startswith("data:image/png;base64,")
        assert [(model, work.num_rows) for model, work in worked] == [("a", 2)]
        assert [message.key for message in received] == [ticket.key, other.key]
        assert [name for name, _ in lost] == ["failed"]
        assert own.states() == {"a": "failed"}
        own.engines[0].outbox.put(None)  # ends the thread that writes

    thread = threading.Thread(target=write)
    thread.start()
    run(once)
    thread.join()
    here.close()


def test_events_are_followed_until_the_last(config: Config, order: Order) -> None:
    async def once() -> None:
        own = scheduler(config, ["a"])
        ticket = own.submit("a", order)

        async def follow() -> list[str]:
            return [name async for name, _ in ticket.events()]

        following = asyncio.ensure_future(follow())
        for name in ("begin", "step", "done"):
            await asyncio.sleep(0)
            own._take(own.engines[0], [(ticket.key, name, {"pictures": {}})], None)
        assert await following == ["begin", "step", "done"]

    run(once)
