"""The socket, and uvicorn on it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from oneflow_dist.serving.app import Server
from oneflow_dist.serving.orders import Limits

GRACE_SECONDS = 3  # for answers that are on their way when the server is told to end


def open_socket(host: str, port: int, limits: Limits) -> socket.socket:
    """A socket that listens. Of its connections one whose other end takes nothing for long is given up by the system.

    Raises:
        ValueError: the address cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        own = socket.create_server(address[:2], family=family, backlog=limits.connections)
    except OSError as error:
        raise ValueError(f"--host, --port: cannot listen on {host}:{port} ({error.strerror}); name another") from error
    own.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * limits.read_seconds))
    return own


def run_server(server: Server, own: socket.socket, token: str) -> None:
    """Serve until a signal ends it."""
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn has ended in order, and says once more what ended it
        asyncio.run(uvicorn.Server(configure(server, token, GRACE_SECONDS)).serve(sockets=[own]))


def configure(server: Server, token: str, grace_seconds: int) -> uvicorn.Config:
    """How uvicorn runs the server."""
    return uvicorn.Config(
        server.app(token),
        http=impatient(server.limits.head_seconds),
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=server.limits.connections,
        timeout_graceful_shutdown=grace_seconds,
    )


def impatient(seconds: float) -> type[asyncio.Protocol]:
    """Uvicorn's HTTP, which waits for the head of a request only so long, for that of a connection's next one too."""

    class Impatient(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.loop.call_later(seconds, self.leave_if_silent, None)

        def on_response_complete(self) -> None:
            self.loop.call_later(seconds, self.leave_if_silent, self.cycle)
            super().on_response_complete()

        def leave_if_silent(self, before: Any) -> None:
            """Nothing whole has been asked since a request, or at all."""
            if self.cycle is before and not self.transport.is_closing():
                self.transport.abort()

    return Impatient
