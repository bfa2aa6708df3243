"""Who is served next, with stand-ins for the processes that write."""

from __future__ import annotations

import asyncio
import collections
import multiprocessing
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from oneflow_dist.config import Config
from oneflow_dist.serving.engine import Card, Write
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
        assert events_of(waiting) == []
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
