"""A real server on a port of its own: uvicorn in a thread of this process, a model in another."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from oneflow_dist.serving.app import Server
from oneflow_dist.serving.measures import Measures
from oneflow_dist.serving.orders import Limits
from oneflow_dist.serving.scheduler import Scheduler
from oneflow_dist.serving.server import configure, open_socket
from tests.launching import Run

SMALL = {"steps": 4, "max_rows": 48}
Event = tuple[str, dict[str, Any]]


@dataclass(kw_only=True)
class Service:
    """A server, seen from both sides."""

    url: str
    server: Server
    client: httpx.Client

    def generate(self, **body: Any) -> dict[str, Any]:
        answer = self.client.post("/v1/generate", json={"settings": SMALL, **body})
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def stream(self, **body: Any) -> list[Event]:
        with self.client.stream("POST", "/v1/generate", json={"settings": SMALL, **body, "stream": True}) as answer:
            assert answer.status_code == 200, answer.read()
            return list(read_events(answer.iter_lines()))

    def is_idle(self) -> bool:
        state = self.client.get("/healthz").json()
        return state["waiting"] == state["writing"] == 0


def read_events(lines: Iterator[str]) -> Iterator[Event]:
    name = ""
    for line in lines:
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            yield name, json.loads(line[6:])


class Serving:
    """Starts servers of one run, and ends them."""

    def __init__(self, run: Path):
        self.run = run

    def __call__(self, token: str = "", **limits: Any) -> Service:
        own = replace(Limits(requests_per_minute=0), **limits)
        measures = Measures()
        scheduler = Scheduler(own, measures.watch)
        scheduler.start({"tiny": str(self.run)}, devices=1, num_threads=1)
        server = Server(scheduler=scheduler, limits=own, measures=measures, runs={"tiny": str(self.run)})
        socket = open_socket("127.0.0.1", 0, own)
        self.uvicorn = uvicorn.Server(configure(server, token, grace_seconds=1))
        self.thread = threading.Thread(target=lambda: asyncio.run(self.uvicorn.serve(sockets=[socket])))
        self.thread.start()
        url = f"http://127.0.0.1:{socket.getsockname()[1]}"
        self.client = httpx.Client(base_url=url, timeout=60.0)
        return Service(url=url, server=server, client=self.client)

    def close(self) -> None:
        self.client.close()
        self.uvicorn.should_exit = True
        self.thread.join()


@pytest.fixture(scope="session")
def service(unbroken: Run) -> Iterator[Service]:
    """Of a tiny model that has hardly been trained."""
    serving = Serving(unbroken.folder)
    yield serving()
    serving.close()


@pytest.fixture
def serve(unbroken: Run) -> Iterator[Callable[..., Service]]:
    """A server with other limits."""
    serving = Serving(unbroken.folder)
    yield serving
    serving.close()
