"""The socket: addresses that cannot be had, and connections on which nothing comes."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from oneflow_dist.serving.orders import Limits
from oneflow_dist.serving.server import open_socket
from tests.messages import naming
from tests.serving.conftest import Service


def test_a_port_that_is_taken_is_one_clear_error() -> None:
    with open_socket("127.0.0.1", 0, Limits()) as own:
        port = own.getsockname()[1]
        with pytest.raises(ValueError, match=naming("--port", f"127.0.0.1:{port}")):
            open_socket("127.0.0.1", port, Limits())


def test_an_address_of_another_machine_is_one_clear_error() -> None:
    with pytest.raises(ValueError, match=naming("--host", "203.0.113.1")):
        open_socket("203.0.113.1", 0, Limits())


def test_a_reader_that_takes_nothing_is_given_up_by_the_system() -> None:
    with open_socket("127.0.0.1", 0, Limits(read_seconds=7.0)) as own:
        assert own.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000


WHOLE = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    ("before", "said"),
    [(b"", b""), (b"", b"GET / HTTP/1.1\r\nHost: local"), (WHOLE, b"GET / HTTP/1.1\r\nHost: local")],
    ids=["nothing", "half a head", "half a head after a whole request"],
)
def test_a_connection_without_a_whole_head_is_closed(before: bytes, said: bytes, serve: Callable[..., Service]) -> None:
    service = serve(head_seconds=0.5)
    host, _, port = service.url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10.0) as own:
        if before:
            own.sendall(before)
            answer = b""
            while b'"writing":0}' not in answer:
                answer += own.recv(10_000)
        own.sendall(said)
        begin = time.monotonic()
        with suppress(ConnectionResetError):
            assert own.recv(100) == b""
        assert 0.3 < time.monotonic() - begin < 3.0
    assert service.client.get("/healthz").status_code == 200


def test_answers_may_take_longer_than_heads_on_one_connection(serve: Callable[..., Service]) -> None:
    service = serve(head_seconds=0.1)
    for _ in range(2):
        begin = time.monotonic()
        assert service.generate(settings={"steps": 150, "max_rows": 48})["steps"] >= 150
        assert time.monotonic() - begin > 0.3
