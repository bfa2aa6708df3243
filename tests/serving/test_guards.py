"""Who may ask, from where and how often."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from oneflow_dist.serving import guards
from oneflow_dist.serving.guards import Guards


async def fine(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("fine")(scope, receive, send)


def ask(app: Guards, path: str = "/v1/models", method: str = "GET", **own: Any) -> httpx.Response:
    async def once() -> httpx.Response:
        transport = httpx.ASGITransport(app=app, client=own.pop("client", ("127.0.0.1", 1)))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8000") as client:
            return await client.request(method, path, **own)

    return asyncio.run(once())


def refusing(token: str = "", rate: int = 0) -> Guards:
    return Guards(fine, token=token, requests_per_minute=rate)


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost", "localhost:1", "[::1]:8000", "[::1]"])
def test_this_machine_may_ask_by_its_names(host: str) -> None:
    assert ask(refusing(), headers={"Host": host}).text == "fine"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost@evil.example", ""]
)
def test_a_name_of_somebody_else_that_leads_here_gets_nothing(host: str) -> None:
    assert ask(refusing(), headers={"Host": host}).status_code == 403


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://127.0.0.1:8000", 200),
        ("http://localhost:3000", 200),
        ("http://[::1]:8000", 200),
        ("https://evil.example", 403),
        ("http://127.0.0.1.evil.example", 403),
        ("http://evil.example:127.0.0.1", 403),
        ("null", 403),
    ],
)
def test_a_page_of_somebody_else_can_send_no_form_here(origin: str, status: int) -> None:
    """Browsers ask nobody before they send one, and say where it comes from."""
    for method in ("GET", "POST"):
        assert ask(refusing(), "/v1/generate", method, headers={"Origin": origin}).status_code == status
    right = {"Authorization": "Bearer secret", "Origin": origin}  # which no browser adds by itself
    assert ask(refusing("secret"), "/v1/generate", "POST", headers=right).status_code == 200


def test_with_a_token_names_do_not_matter_and_the_token_does() -> None:
    app = refusing("secret")
    right, wrong = {"Authorization": "Bearer secret"}, {"Authorization": "Bearer other"}
    assert ask(app, headers={**right, "Host": "far.example"}).text == "fine"
    for headers in ({}, wrong, {"Authorization": "Bearer"}, {"Authorization": "Bearer secret2"}):
        answer = ask(app, headers=headers)
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(("path", "status"), [("/", 200), ("/page/page.js", 200), ("/healthz", 200), ("/metrics", 401)])
def test_the_page_can_be_had_without_the_token_to_ask_for_it(path: str, status: int) -> None:
    assert ask(refusing("secret"), path).status_code == status


def test_a_link_to_the_report_carries_the_token_in_its_address_and_no_other_does() -> None:
    app = refusing("a token & more")
    assert ask(app, "/report?token=a%20token%20%26%20more").status_code == 200
    assert ask(app, "/report?token=other").status_code == 401
    assert ask(app, "/v1/models?token=a%20token%20%26%20more").status_code == 401


def test_answers_carry_their_policy() -> None:
    app = refusing()
    assert "script-src 'self'" in ask(app, "/").headers["content-security-policy"]
    assert "connect-src" not in ask(app, "/report").headers["content-security-policy"]
    for path in ("/", "/report", "/v1/models"):
        headers = ask(app, path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in headers["content-security-policy"]


def test_an_address_has_so_many_requests_in_a_minute_and_more_as_time_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(guards.time, "monotonic", lambda: now)
    app = refusing(rate=3)
    assert [ask(app, method="POST").status_code for _ in range(4)] == [200, 200, 200, 429]
    answer = ask(app, method="POST")
    assert int(answer.headers["retry-after"]) in (20, 21)  # a third of a minute each
    assert ask(app).status_code == 200  # what only looks is free
    assert ask(app, method="POST", client=("10.0.0.2", 1)).status_code == 200
    now += 21.0
    assert [ask(app, method="POST").status_code for _ in range(2)] == [200, 429]


def test_who_asks_again_too_early_is_served_when_it_was_told_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(guards.time, "monotonic", lambda: now)
    app = refusing(rate=3)
    statuses = []
    for _ in range(60):
        statuses.append(ask(app, method="POST").status_code)
        now += 1.0
    assert statuses.count(200) in (5, 6)  # three at once, and one each third of a minute


def test_no_more_than_so_many_addresses_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "MOST_ADDRESSES", 3)
    app = refusing(rate=1)
    for number in range(5):
        ask(app, method="POST", client=(f"10.0.0.{number}", 1))
    assert len(app.buckets) == 3
    assert ask(app, method="POST", client=("10.0.0.4", 1)).status_code == 429
