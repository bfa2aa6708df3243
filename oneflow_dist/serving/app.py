"""The server's addresses: the page, `/v1/generate`, what OpenAI's clients ask for, health, measures and the report."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from oneflow_dist.config import Config
from oneflow_dist.reporting.page import render
from oneflow_dist.serving import openai
from oneflow_dist.serving.answers import (
    EventStream,
    RequestError,
    describe_error,
    error_response,
    event_bytes,
    unless_gone,
)
from oneflow_dist.serving.guards import Guards
from oneflow_dist.serving.measures import Measures
from oneflow_dist.serving.orders import Limits, Order
from oneflow_dist.serving.requests import GenerateBody, Uploads, read_body, read_generate
from oneflow_dist.serving.scheduler import OverloadedError, Scheduler, Ticket
from oneflow_dist.serving.settings import describe_settings
from oneflow_dist.serving.telling import Event
from oneflow_dist.version import package_version

PAGE = Path(__file__).parent / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
REPORT_SECONDS = 5.0  # for which a report is kept
MEDIA = ("application/json", "multipart/form-data")


@dataclass(kw_only=True)
class Server:
    """The handlers of all addresses."""

    scheduler: Scheduler
    limits: Limits
    measures: Measures
    runs: dict[str, str]  # folders, by the names of their models
    report: tuple[float, str] = (float("-inf"), "")  # when it was made, and what it says
    rendering: asyncio.Lock = field(default_factory=asyncio.Lock)  # of the report: one makes it, others wait for it

    def app(self, token: str) -> Starlette:
        """What uvicorn runs."""
        files = {f"/page/{path.name}": path for path in sorted(PAGE.iterdir())} | {"/": PAGE / "index.html"}
        contents = {address: (path.read_bytes(), TYPES[path.suffix]) for address, path in files.items()}

        async def file(request: Request) -> Response:
            content, kind = contents[request.url.path]
            return Response(content, media_type=kind)

        routes = [
            *(Route(address, file) for address in files),
            Route("/healthz", self.health),
            Route("/metrics", self.measured),
            Route("/report", self.reported),
            Route("/v1/models", self.models),
            Route("/v1/generate", self.counted(self.generate), methods=["POST"]),
            Route("/v1/chat/completions", self.counted(self.chat), methods=["POST"]),
            Route("/v1/images/generations", self.counted(self.images), methods=["POST"]),
        ]
        guards = Middleware(Guards, token=token, requests_per_minute=self.limits.requests_per_minute)
        errors: dict[Any, Any] = {HTTPException: _http_error, RequestError: _request_error}
        return Starlette(routes=routes, middleware=[guards], exception_handlers=errors, lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self.scheduler.listen()
        yield
        self.scheduler.stop()

    def counted(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """A handler whose answers are counted, and whose errors are answers."""

        async def answer(request: Request) -> Response:
            try:
                response = await handler(request)
            except ValueError as error:
                response = error_response(RequestError(400, str(error)))
            except OverloadedError as error:
                response = error_response(RequestError(503, str(error), retry_after=1))
            except RequestError as error:
                response = error_response(error)
            self.measures.requests.labels(request.url.path, str(response.status_code)).inc()
            return response

        return answer

    async def health(self, _: Request) -> Response:
        """Whether every model can write."""
        states = self.scheduler.states()
        waiting, writing = sum(map(self.scheduler.num_waiting, states)), sum(map(self.scheduler.num_writing, states))
        is_well = "failed" not in states.values()
        body = {"status": "ok" if is_well else "failed", "models": states, "waiting": waiting, "writing": writing}
        return JSONResponse(body, 200 if is_well else 503)

    async def measured(self, _: Request) -> Response:
        """For Prometheus."""
        for model in self.runs:
            self.measures.waiting.labels(model).set(self.scheduler.num_waiting(model))
            self.measures.writing.labels(model).set(self.scheduler.num_writing(model))
        return Response(self.measures.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def reported(self, _: Request) -> Response:
        """The report of the runs that are served."""
        async with self.rendering:
            made, page = self.report
            if time.monotonic() - made > REPORT_SECONDS:
                page = await asyncio.to_thread(render, [Path(run) for run in self.runs.values()], 10.0)
                self.report = time.monotonic(), page
        return HTMLResponse(page)

    async def models(self, _: Request) -> Response:
        """What is served, and with which settings."""
        return JSONResponse({"object": "list", "data": [self._describe(model) for model in self.runs]})

    def _describe(self, model: str) -> dict[str, Any]:
        card = self.scheduler.cards[model]
        config = card.config
        modalities = [
            {
                "name": name,
                "token": own.token,
                "is_target": own.is_target,
                "is_picture": own.dimensions == 2,
                "height": own.shape[0] if own.dimensions == 2 else None,
                "width": own.shape[1] if own.dimensions == 2 else None,
            }
            for name, own in config.modality.items()
        ]
        about = {
            "version": package_version(),
            "objective": config.objective.kind,
            "step": card.step,
            "parameters": card.num_parameters,
            "max_rows": self.limits.max_rows or config.sampling.max_rows,
            "has_turns": card.has_turns,
            "modalities": modalities,
            "prompts": list(config.sampling.prompts),
            "settings": describe_settings(config, self.limits),
        }
        return {"id": model, "object": "model", "created": 0, "owned_by": "oneflow_dist", "oneflow": about}

    async def generate(self, request: Request) -> Response:
        """POST /v1/generate."""
        content, uploads = await self._read(request)
        body = read_body(GenerateBody, content)
        model, config = self._find(body.model)
        ticket = self.scheduler.submit(model, read_generate(body, uploads, config, self.limits))
        about = {"id": ticket.key, "model": model, "seed": body.seed, "objective": config.objective.kind}
        if not body.stream:
            return JSONResponse(about | self._public(ticket, await self._last(request, ticket)))
        events = await self._begun(request, ticket)
        return self._stream([ticket], self._told(ticket, events, about))

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        body = read_body(openai.ChatBody, (await self._read(request))[0])
        model, config = self._find(body.model)
        ticket = self.scheduler.submit(model, openai.read_chat(body, config, self.limits))
        if not body.stream:
            return JSONResponse(openai.chat_answer(ticket, await self._last(request, ticket)))
        events = await self._begun(request, ticket)
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        return self._stream([ticket], openai.chat_chunks(ticket, events, with_usage))

    async def images(self, request: Request) -> Response:
        """POST /v1/images/generations."""
        body = read_body(openai.ImagesBody, (await self._read(request))[0])
        model, config = self._find(body.model)
        orders = openai.read_images(body, config, self.limits)
        if body.stream and len(orders) > 1:
            raise ValueError(f"n: is {len(orders)}, but a stream has one picture; ask for one, or without stream")
        tickets = self._submit_all(model, orders)
        if body.stream:
            events = await self._begun(request, tickets[0])
            return self._stream(tickets, openai.image_chunks(events, body.partial_images or 0))
        last = [await self._last(request, ticket, tickets) for ticket in tickets]
        return JSONResponse(openai.images_answer(tickets, last, body.response_format == "url"))

    async def _read(self, request: Request) -> tuple[bytes, Uploads]:
        """The JSON of a request, and the files of a form.

        Raises:
            RequestError: it is too large, too slow, or of another kind.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in MEDIA:
            raise RequestError(415, f"Content-Type: is {kind[:60]!r}; send {' or '.join(MEDIA)}")
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                content = b"".join([chunk async for chunk in self._limited(request)])
        except TimeoutError:
            raise RequestError(
                408, f"request: took more than {self.limits.body_seconds:.0f} s to arrive; send less, or send it faster"
            ) from None
        except ClientDisconnect:
            raise RequestError(499, "the client has gone") from None
        return (content, {}) if kind == MEDIA[0] else await self._read_form(request, content)

    async def _limited(self, request: Request) -> AsyncIterator[bytes]:
        most, size = self.limits.body_bytes, 0
        stated = request.headers.get("content-length", "0")
        async for chunk in request.stream():
            size += len(chunk)
            if size > most or (stated.isdecimal() and int(stated) > most):
                raise RequestError(
                    413, f"request: is larger than this server allows, {most} bytes; send less, or smaller pictures"
                )
            yield chunk

    async def _read_form(self, request: Request, content: bytes) -> tuple[bytes, Uploads]:
        """The field `request` of a form, and its files; all of it stays in memory."""

        async def once() -> AsyncGenerator[bytes]:
            yield content

        parser = MultiPartParser(
            request.headers, once(), max_files=self.limits.pictures, max_fields=1, max_part_size=self.limits.body_bytes
        )
        parser.spool_max_size = self.limits.body_bytes + 1
        try:
            form = await parser.parse()
        except (MultiPartException, KeyError, UnicodeDecodeError) as error:
            raise ValueError(f"request: is no form ({getattr(error, 'message', error)})") from None
        asked = form.get("request")
        files = {name: await own.read() for name, own in form.items() if isinstance(own, UploadFile)}
        await form.close()
        if not isinstance(asked, str):
            raise ValueError("request: the form has no such field; it holds the JSON")
        return asked.encode(), files

    def _find(self, model: str | None) -> tuple[str, Config]:
        name = next(iter(self.runs)) if model is None else model
        if name not in self.runs:
            raise RequestError(404, f"model: {name[:80]!r} is not served; there are {', '.join(self.runs)}")
        return name, self.scheduler.cards[name].config

    def _submit_all(self, model: str, orders: list[Order]) -> list[Ticket]:
        """All of them, or none where there is no place for the last."""
        tickets: list[Ticket] = []
        try:
            for order in orders:
                tickets.append(self.scheduler.submit(model, order))
        except OverloadedError:
            for ticket in tickets:
                self.scheduler.cancel(ticket)
            raise
        return tickets

    async def _begun(self, request: Request, ticket: Ticket) -> AsyncIterator[tuple[str, Event]]:
        """All events of a ticket, once the first has come: so what is refused has a status of its own."""
        events = ticket.events()
        first = await unless_gone(request, anext(events), partial(self.scheduler.cancel, ticket))
        self._raise_if_refused(*first)

        async def all_events() -> AsyncIterator[tuple[str, Event]]:
            yield first
            async for event in events:
                yield event

        return self._noted(ticket, all_events())

    async def _last(self, request: Request, ticket: Ticket, beside: list[Ticket] | None = None) -> Event:
        """The event that ends a ticket; if the client goes, it and those beside it are cancelled."""

        async def wait() -> tuple[str, Event]:
            return [told async for told in self._noted(ticket, ticket.events())][-1]

        def close() -> None:
            for each in beside or [ticket]:
                self.scheduler.cancel(each)

        name, event = await unless_gone(request, wait(), close)
        if name != "done":
            close()
        self._raise_if_refused(name, event)
        return event

    def _raise_if_refused(self, name: str, event: Event) -> None:
        if name == "refused":
            raise RequestError(400, event["message"])
        if name == "failed":
            raise RequestError(500, event["message"])

    async def _noted(
        self, ticket: Ticket, events: AsyncIterator[tuple[str, Event]]
    ) -> AsyncIterator[tuple[str, Event]]:
        """The same events, measured."""
        measures, model = self.measures, ticket.model
        async for name, event in events:
            if name == "begin" and ticket.begun is not None:
                measures.queued.labels(model).observe(ticket.begun - ticket.arrived)
            elif name == "done":
                measures.whole.labels(model).observe(time.monotonic() - ticket.arrived)
                measures.tokens.labels(model).inc(event["num_tokens"] - event["num_given"])
            if name in ("done", "refused", "failed"):
                measures.documents.labels(model, name).inc()
            yield name, event

    async def _told(
        self, ticket: Ticket, events: AsyncIterator[tuple[str, Event]], about: Event
    ) -> AsyncIterator[bytes]:
        """Events as a page reads them."""
        async for name, event in events:
            if name in ("refused", "failed"):
                yield event_bytes(describe_error(event["message"], 400 if name == "refused" else 500), "error")
            elif name == "done":
                yield event_bytes(about | self._public(ticket, event), name)
            elif name == "begin":
                yield event_bytes(about | event, name)
            elif name == "queued":
                yield event_bytes({"id": ticket.key} | event, name)
            else:
                yield event_bytes(event, name)

    def _public(self, ticket: Ticket, event: Event) -> Event:
        queued = (ticket.begun or ticket.arrived) - ticket.arrived
        hidden = ("num_given", "num_tokens", "written")
        return {key: own for key, own in event.items() if key not in hidden} | {"queued_seconds": round(queued, 4)}

    def _stream(self, tickets: list[Ticket], events: AsyncIterator[bytes]) -> Response:
        def close() -> None:
            for ticket in tickets:
                self.scheduler.cancel(ticket)

        return EventStream(events, close, self.limits.read_seconds)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(describe_error(f"{error.detail}", error.status_code), error.status_code, error.headers)


async def _request_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error_response(error)
