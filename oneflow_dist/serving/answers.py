"""Answers of the server: JSON, errors, and streams of events that end when nobody reads them any more."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

COMMENT_SECONDS = 15.0  # after which a silent stream says that it is alive
Value = TypeVar("Value")


class RequestError(Exception):
    """Ends a request with a status and one line."""

    def __init__(self, status: int, message: str, retry_after: int | None = None):
        super().__init__(message)
        self.status, self.message, self.retry_after = status, message, retry_after


KIND_OF_STATUS = {401: "authentication_error", 403: "authentication_error", 429: "rate_limit_error"}


def describe_error(message: str, status: int = 400) -> dict[str, Any]:
    """The body of an error, as OpenAI's clients read it."""
    head = message.partition(":")[0]
    is_name = head.replace(".", "").replace("_", "").isalnum() and " " not in head
    param = head if is_name and status < 500 else None
    kind = KIND_OF_STATUS.get(
        status, "overloaded_error" if status == 503 else "server_error" if status >= 500 else None
    )
    return {"error": {"message": message, "type": kind or "invalid_request_error", "param": param, "code": None}}


def error_response(error: RequestError) -> Response:
    """An error as JSON."""
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after is not None else None
    return JSONResponse(describe_error(error.message, error.status), error.status, headers)


def event_bytes(data: Any, name: str | None = None) -> bytes:
    """One event of a stream."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    return (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()


class EventStream(Response):
    """Server-sent events.

    A client that has gone, or takes nothing for `read_seconds`, ends the stream; `close` is called however it ends.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None], read_seconds: float):
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        self.events, self.close, self.read_seconds = events, close, read_seconds
        self._coming: asyncio.Future[bytes | None] | None = None
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all events, or stop when nobody is there."""
        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while (chunk := await self._next(gone)) is not None:
                async with asyncio.timeout(self.read_seconds):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            if not gone.done():
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (TimeoutError, OSError):
            return  # it reads too slowly, or has gone between two events
        finally:
            gone.cancel()
            if self._coming is not None:
                self._coming.cancel()
            self.close()

    async def _next(self, gone: asyncio.Future[None]) -> bytes | None:
        """The next event, a comment while there is none, or None at the end."""
        coming = self._coming or asyncio.ensure_future(anext(self.events, None))
        both: set[asyncio.Future[Any]] = {coming, gone}
        await asyncio.wait(both, timeout=COMMENT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        self._coming = None if coming.done() else coming
        if gone.done():
            coming.cancel()
            return None
        return coming.result() if coming.done() else b": still here\n\n"


async def unless_gone(request: Request, wanted: Awaitable[Value], close: Callable[[], None]) -> Value:
    """What is awaited, if the client stays that long.

    Raises:
        RequestError: it has gone; nobody will read it. `close` has been called.
    """
    task, gone = asyncio.ensure_future(wanted), asyncio.ensure_future(_until_gone(request.receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        close()
        raise RequestError(499, "the client has gone")
    finally:
        task.cancel()
        gone.cancel()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
