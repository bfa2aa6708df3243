"""How a server answers many users at once: documents a second beside one user after the other, waiting, memory.

Users are clients in one process, each of which asks for its next document when it has the one before. What many users
get is compared, byte for byte, with what one user alone gets for the same requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import aiohttp

from tools.benchmark.result import Measured, Series

RATE, RATIO = "documents a second", "documents a second of all users over those of one"
FIRST, WHOLE = "seconds to the first token", "seconds to the end"
MEMORY, DIFFERENT = "MiB of the server's processes, by requests answered", "answers that differ from those of one user"
Way = Literal["as the page", "whole"]  # every step with its pictures; or the document alone, when it is done
WAYS: tuple[Way, ...] = ("as the page", "whole")
SECONDS = 600.0  # after which nobody waits any more


@dataclass(frozen=True, slots=True)
class Answer:
    """One document as a client saw it."""

    first: float | None  # seconds to the first token that was written; None: there was none, or nobody looked
    whole: float  # seconds
    digest: str  # of its tokens, pictures and latents


@dataclass(kw_only=True)
class Service:
    """A server that runs beside this process."""

    url: str
    pid: int
    prompts: list[str]  # of its config

    def mebibytes(self) -> float:
        """Of it and of its children."""
        return sum(map(_resident, [self.pid, *children_of(self.pid)])) / 2**20


def measure(run: Path, users: int, documents: int, rounds: int, requests: int) -> Measured:
    """In each round and way the same documents for one user after the other, then for all users together.

    Args:
        documents: of each round and way.
        requests: how many more are answered while memory is looked at.

    Raises:
        ValueError: the server does not start.
    """
    with serve(run) as service:
        return asyncio.run(_measure(service, users, documents, rounds, requests))


@contextlib.contextmanager
def serve(run: Path, *options: str) -> Iterator[Service]:
    """A server of one run on a port of its own."""
    command = [
        sys.executable,
        "-m",
        "oneflow_dist.commands.serve",
        str(run),
        "--port=0",
        "--requests-per-minute=0",
        *options,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("serving on "):
                    yield asyncio.run(_open(line.split()[2], process.pid))
                    break
            else:
                raise ValueError(f"{run}: cannot be served; see above")
        finally:
            process.send_signal(signal.SIGINT)


async def _open(url: str, pid: int) -> Service:
    async with aiohttp.ClientSession() as session, session.get(f"{url}v1/models") as response:
        (model, *_) = (await response.json())["data"]
    return Service(url=url, pid=pid, prompts=model["oneflow"]["prompts"] or [""])


async def _measure(service: Service, users: int, documents: int, rounds: int, requests: int) -> Measured:
    series: Series = {name: {} for name in (RATE, RATIO, FIRST, WHOLE, DIFFERENT, MEMORY)}
    async with aiohttp.ClientSession(
        timeout=aiohttp.ClientTimeout(SECONDS), connector=aiohttp.TCPConnector(limit=0)
    ) as session:
        for _ in range(rounds):
            for way in WAYS:
                alone, alone_seconds = await ask(session, service, 1, range(documents), way)
                crowd, crowd_seconds = await ask(session, service, users, range(documents), way)
                rates = documents / alone_seconds, documents / crowd_seconds
                for name, rate, answers in (
                    (f"{way}, 1 user", rates[0], alone),
                    (f"{way}, {users} users", rates[1], crowd),
                ):
                    series[RATE].setdefault(name, []).append(rate)
                    series[WHOLE].setdefault(name, []).extend(answer.whole for answer in answers)
                    if way == "as the page":
                        seen = [answer.first for answer in answers if answer.first is not None]
                        series[FIRST].setdefault(name, []).extend(seen)
                differ = sum(one.digest != other.digest for one, other in zip(alone, crowd, strict=True))
                series[RATIO].setdefault(way, []).append(rates[1] / rates[0])
                series[DIFFERENT].setdefault(way, []).append(differ)
        memory = [service.mebibytes()]
        for first in range(0, requests, 100):
            await ask(session, service, users, range(first, min(first + 100, requests)), "as the page")
            memory.append(service.mebibytes())
    series[MEMORY]["every 100 requests"] = memory
    return Measured(
        series=series, notes=[f"{users} users are clients in one process beside the server, on the same cores"]
    )


async def ask(
    session: aiohttp.ClientSession, service: Service, users: int, seeds: range, way: Way
) -> tuple[list[Answer], float]:
    """Documents of these seeds, so many users at once; and the seconds for all of them."""
    answers: dict[int, Answer] = {}
    waiting = iter(seeds)

    async def user() -> None:
        for seed in waiting:
            answers[seed] = await ask_one(session, service, seed, way)

    begin = time.perf_counter()
    await asyncio.gather(*(user() for _ in range(users)))
    return [answers[seed] for seed in seeds], time.perf_counter() - begin


async def ask_one(session: aiohttp.ClientSession, service: Service, seed: int, way: Way) -> Answer:
    """One document of the config's prompts, taken in turn."""
    own = {"parts": [{"text": text}] if (text := service.prompts[seed % len(service.prompts)]) else [], "seed": seed}
    begin, first = time.perf_counter(), None
    done: dict[str, Any] = {}
    if way == "whole":
        async with session.post(f"{service.url}v1/generate", json=own) as response:
            response.raise_for_status()
            done = await response.json()
    else:
        async with session.post(
            f"{service.url}v1/generate", json={**own, "stream": True, "preview_steps": 1}
        ) as response:
            response.raise_for_status()
            async for name, data in events_of(response):
                if name == "step" and first is None and b'"inserted":[{' in data:
                    first = time.perf_counter() - begin
                elif name == "done":
                    done = json.loads(data)
    if not done:
        raise ValueError(f"seed {seed}: the server ended its answer before the document was done")
    seen = json.dumps([done["tokens"], done["pieces"]]).encode()
    return Answer(first, time.perf_counter() - begin, hashlib.sha256(seen).hexdigest())


async def events_of(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, bytes]]:
    """Names and data of a stream."""
    name, rest = "", b""
    async for chunk in response.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.startswith(b"event: "):
                name = line[7:].decode()
            elif line.startswith(b"data: "):
                yield name, line[6:]


def children_of(pid: int) -> list[int]:
    """Processes below a process, all generations."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid:
                own = int(path.parent.name)
                found += [own, *children_of(own)]
    return found


def _resident(pid: int) -> int:
    """Bytes that a process alone holds, or shares."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
