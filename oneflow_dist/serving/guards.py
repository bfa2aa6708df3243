"""What stands before every request: who may ask, how often, and what answers carry along."""

from __future__ import annotations

import collections
import hmac
import re
import time
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from oneflow_dist.serving.answers import RequestError, error_response

OPEN_PATHS = ("/", "/healthz")  # and /page/: what the page needs to ask for the token
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
ORIGIN = re.compile(rf"https?://({'|'.join(map(re.escape, LOOPBACK))})(:\d+)?")  # of pages that browsers send along
MOST_ADDRESSES = 10_000  # that are remembered
PAGE = (
    "default-src 'self'; img-src 'self' data: blob:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
REPORT = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; frame-ancestors 'none'"
)


class Guards:
    """ASGI middleware.

    Without a token the server is for this machine alone, and answers only to its names: a page of somebody else whose
    name has been made to lead here gets nothing, and neither does one that sends a form here.
    """

    def __init__(self, app: ASGIApp, token: str, requests_per_minute: int):
        """An empty token: none is asked for."""
        self.app, self.token, self.rate = app, token, requests_per_minute
        self.buckets: collections.OrderedDict[str, tuple[float, float]] = collections.OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, is_report = scope["path"], scope["path"] == "/report"

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = REPORT if is_report else PAGE
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                headers.setdefault("Cache-Control", "no-cache")
            await send(message)

        try:
            self._check(scope, path)
        except RequestError as error:
            await error_response(error)(scope, receive, send_guarded)
            return
        await self.app(scope, receive, send_guarded)

    def _check(self, scope: Scope, path: str) -> None:
        headers = Headers(scope=scope)
        if not self.token:
            name = headers.get("host", "").rpartition(":")[0] or headers.get("host", "")
            if name not in LOOPBACK and headers.get("host", "") not in LOOPBACK:
                raise RequestError(403, f"Host: {name[:80]!r} is not this machine; ask http://127.0.0.1")
            origin = headers.get("origin")
            if origin is not None and ORIGIN.fullmatch(origin) is None:
                raise RequestError(403, f"Origin: {origin[:80]!r} is not this machine; ask from a page of it")
        elif path not in OPEN_PATHS and not path.startswith("/page/"):
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if path == "/report" and not given:  # a link cannot carry a header
                given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
            if not hmac.compare_digest(given.encode("utf-8", "replace"), self.token.encode()):
                raise RequestError(401, "Authorization: the token is missing or wrong; send Bearer TOKEN")
        if self.rate and scope["method"] == "POST":
            self._count((scope.get("client") or ("?",))[0])

    def _count(self, address: str) -> None:
        """A bucket of a minute's requests for each address, which fills as time goes."""
        now = time.monotonic()
        left, then = self.buckets.pop(address, (float(self.rate), now))
        left = min(float(self.rate), left + (now - then) * self.rate / 60.0)
        self.buckets[address] = (left - 1.0 if left >= 1.0 else left, now)  # what is refused costs nothing
        if len(self.buckets) > MOST_ADDRESSES:
            self.buckets.popitem(last=False)
        if left < 1.0:
            seconds = int((1.0 - left) * 60.0 / self.rate) + 1
            raise RequestError(429, f"more than {self.rate} requests in a minute; try again in {seconds} s", seconds)
