"""Streams that end however their reader behaves, and errors that clients understand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from oneflow_dist.serving import answers
from oneflow_dist.serving.answers import EventStream, RequestError, describe_error, error_response, event_bytes


class Reader:
    """A client: it takes so many messages, each after a while, and then goes, stays, or stops taking any."""

    def __init__(self, most: int = 1000, then: str = "stays", slowness: float = 0.0):
        self.most, self.then, self.slowness = most, then, slowness
        self.got: list[dict[str, Any]] = []
        self.has_gone = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        if len(self.got) == 0:
            await asyncio.sleep(0)
        await self.has_gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await asyncio.sleep(self.slowness)
        if len(self.got) >= self.most:
            if self.then == "goes":
                self.has_gone.set()
            elif self.then == "breaks":
                raise OSError("gone")
            else:
                await asyncio.Event().wait()
        self.got.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.got)


def run(reader_of: Any, count: int, read_seconds: float = 5.0, pause: float = 0.0) -> tuple[Reader, int, int]:
    """The reader, how many events were made for it, and how often the stream was closed."""
    made, closed = 0, 0

    async def events() -> AsyncIterator[bytes]:
        nonlocal made
        for number in range(count):
            await asyncio.sleep(pause)
            made += 1
            yield event_bytes({"number": number}, "step")

    def close() -> None:
        nonlocal closed
        closed += 1

    async def once() -> Reader:
        reader = reader_of()
        await asyncio.wait_for(
            EventStream(events(), close, read_seconds)({"type": "http"}, reader.receive, reader.send), 10
        )
        return reader

    return asyncio.run(once()), made, closed


def test_every_event_arrives_and_the_stream_ends() -> None:
    reader, made, closed = run(Reader, 5)
    assert reader.body.count(b"event: step\n") == made == 5
    assert reader.got[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
    assert closed == 1


@pytest.mark.parametrize("then", ["goes", "breaks", "takes nothing"])
def test_a_stream_ends_with_its_reader(then: str) -> None:
    _, made, closed = run(lambda: Reader(4, then), 10_000, read_seconds=0.2)
    assert made < 20
    assert closed == 1


def test_a_reader_that_goes_while_nothing_is_said_ends_the_stream() -> None:
    reader_of: list[Reader] = []

    def make() -> Reader:
        reader_of.append(Reader())
        asyncio.get_running_loop().call_later(0.1, reader_of[0].has_gone.set)
        return reader_of[0]

    _, made, closed = run(make, 3, pause=30.0)
    assert (made, closed) == (0, 1)


def test_nothing_is_waited_for_once_a_reader_took_too_long_for_a_comment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "COMMENT_SECONDS", 0.02)
    ended: list[str] = []

    async def events() -> AsyncIterator[bytes]:
        try:
            await asyncio.sleep(30.0)
            yield b""
        finally:
            ended.append("events")

    async def once() -> None:
        reader = Reader(most=2, then="takes nothing")
        stream = EventStream(events(), lambda: ended.append("stream"), read_seconds=0.1)
        await stream({"type": "http"}, reader.receive, reader.send)
        await asyncio.sleep(0.05)
        assert ended == ["stream", "events"]

    asyncio.run(once())


def test_a_silent_stream_says_that_it_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "COMMENT_SECONDS", 0.02)
    reader, _, _ = run(Reader, 2, pause=0.1)
    assert reader.body.count(b"\n\n") > 2
    assert reader.body.replace(b": still here\n\n", b"").count(b"event: step\n") == 2


def test_slow_is_not_too_slow() -> None:
    reader, made, _ = run(lambda: Reader(slowness=0.02), 5, read_seconds=0.2)
    assert reader.body.count(b"event: step\n") == made == 5


@pytest.mark.parametrize(
    ("message", "status", "kind", "param"),
    [
        ("settings.steps: 0 is not in [1, inf)", 400, "invalid_request_error", "settings.steps"),
        ("3 requests are waiting already; try again later", 503, "overloaded_error", None),
        ("a sentence: with a colon", 500, "server_error", None),
        ("quickstart: its process is gone", 503, "overloaded_error", None),
        ("too many", 429, "rate_limit_error", None),
    ],
)
def test_an_error_says_its_kind_and_of_what_it_is(message: str, status: int, kind: str, param: str | None) -> None:
    error = describe_error(message, status)["error"]
    assert (error["message"], error["type"], error["param"]) == (message, kind, param)


def test_who_may_come_back_is_told_when() -> None:
    assert error_response(RequestError(503, "full", retry_after=2)).headers["retry-after"] == "2"
    assert "retry-after" not in error_response(RequestError(400, "wrong")).headers
