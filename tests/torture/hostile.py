"""Two hundred requests that nobody should send, and whether the server is as it was after them.

None of them may get an answer that is no refusal, end a process, leave a file or a connection behind, or change what
an honest request gets. `tests/torture/hostile.py runs/quickstart`; takes a minute or two.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import io
import json
import os
import random
import shutil
import socket
import struct
import sys
import tempfile
import time
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[2]))
from tools.benchmark.serving import children_of, serve

JSON = "application/json"
Case = tuple[str, bytes]  # its name, and what goes through the socket
PATIENCE = 20.0  # seconds for an answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder")
    args = parser.parse_args()
    scratch = Path(tempfile.mkdtemp())  # of the server alone
    os.environ["TMPDIR"] = str(scratch)
    with serve(args.run, "--body-bytes=4000000", "--pixels=4000000") as service:
        host = urlsplit(service.url).netloc
        reference = honest(service.url)
        settle(service.url)
        before, files = (listing(args.run), listing(scratch)), open_files(service.pid)
        count, failures = 0, []
        for name, data in all_cases(host):
            count += 1
            answer = exchange(host, data)
            status = answer.split(b" ", 2)[1][:3].decode("latin-1") if answer.startswith(b"HTTP/1.1 ") else "closed"
            is_refused = status == "closed" or status[0] == "4" or (status[0] == "2" and b"event: error" in answer)
            if not is_refused:
                failures.append(f"{name}: {status} {answer[:200]!r}")
            if b"Traceback" in answer or str(Path.cwd()).encode() in answer:
                failures.append(f"{name}: tells of the server's inside: {answer[:200]!r}")
            print(f"{count:4d} {status:>6}  {name}", flush=True)
        for name, point in disconnects(host):
            count += 1
            point()
            print(f"{count:4d}   left  {name}", flush=True)
        settle(service.url)
        if honest(service.url) != reference:
            failures.append("an honest request gets another answer than before")
        if len(left := open_files(service.pid)) > len(files) + 2:
            failures.append(f"files and connections: {len(files)} before, {len(left)} after: {left}")
        if not children_of(service.pid):
            failures.append("the process with the model is gone")
    for folder, was in zip((args.run, scratch), before, strict=True):
        if new := {name for name in listing(folder) - was if "pymp-" not in name}:
            failures.append(f"{folder}: has new files: {sorted(new)[:5]}")
    shutil.rmtree(scratch)
    print(
        "\n".join(failures) or f"{count} hostile requests: all refused or left, nothing left behind, answers as before"
    )
    sys.exit(bool(failures))


def all_cases(host: str) -> Iterator[Case]:
    """Requests as bytes, whole or not."""
    yield from bodies(host)
    yield from pictures(host)
    yield from addresses(host)
    yield from forms(host)
    yield from heads(host)


def post(host: str, body: bytes, kind: str = JSON, path: str = "/v1/generate", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n\r\n"
    return head.encode() + body


def bodies(host: str) -> Iterator[Case]:
    texts = {
        "empty": b"",
        "no JSON": b"{",
        "null": b"null",
        "a list": b"[]",
        "not UTF-8": b'{"parts":[{"text":"\xff\xfe"}]}',
        "half a surrogate pair": b'{"parts":[{"text":"\\ud800"}]}',
        "100,000 brackets": b"[" * 100_000,
        "100,000 braces": b'{"a":' * 100_000,
        "a number of 5,000 digits": b'{"seed":' + b"9" * 5000 + b"}",
        "NaN": b'{"seed":NaN}',
        "infinity": b'{"settings":{"temperature":1e999}}',
        "a million blanks": json.dumps({"parts": [{"text": " " * 1_000_000}]}).encode(),
        "200,000 characters": json.dumps({"parts": [{"text": "a " * 100_000}]}).encode(),
        "100,000 parts": json.dumps({"parts": [{"text": "a"}] * 100_000}).encode(),
        "1,000 pieces": json.dumps({"parts": [{"make": "image"}] * 250}).encode(),
    }
    for name, body in texts.items():
        yield name, post(host, body)
    yield "larger than allowed", post(host, b" " * 4_100_000)
    yield "says that it is a terabyte", post(host, b"{}", length=10**12)
    yield "says a length of minus one", post(host, b"{}", length=-1)
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    head = f"POST /v1/generate HTTP/1.1\r\nHost: {host}\r\nContent-Type: {JSON}\r\nTransfer-Encoding: chunked\r\n\r\n"
    yield "larger than allowed, in chunks", head.encode() + chunk * 70 + b"0\r\n\r\n"
    wrong = (None, True, -1, 1.5, "x", [], {}, [[]], 2**64, "../../etc/passwd", "\0")
    for field in ("model", "parts", "settings", "seed", "stream", "preview_steps"):
        for value in wrong:
            if (field, value) in (("model", None), ("stream", True)) or (
                field in ("parts", "settings") and value == ([] if field == "parts" else {})
            ):
                continue
            yield f"{field}: {str(value)[:20]!r}", post(host, json.dumps({field: value}).encode())
    parts = [
        {},
        {"text": 1},
        {"text": "a", "image": "b"},
        {"hole": False},
        {"make": "../x"},
        {"make": 1},
        {"tokens": [-1]},
    ]
    parts += [
        {"tokens": [10**9]},
        {"tokens": ["a"]},
        {"tokens": "a"},
        {"file": "/etc/passwd"},
        {"image": {"path": "/etc/passwd"}},
    ]
    for shape, data in (
        ([1, 8, 8], ""),
        ([1, 8, 8], "!"),
        ([2**30, 2**30], ""),
        ([0], ""),
        ([-1, 8], ""),
        ([], ""),
        ([1] * 9, "AAAA"),
    ):
        parts.append({"latent": {"modality": "image", "shape": shape, "data": data}})
    nan = base64.b64encode(struct.pack("<64f", *[float("nan")] * 64)).decode()
    parts += [
        {"latent": {"modality": "image", "shape": [1, 8, 8], "data": nan}},
        {"latent": {"modality": "x", "shape": [1], "data": "AAAAAA=="}},
    ]
    for part in parts:
        yield f"part {str(part)[:50]}", post(host, json.dumps({"parts": [part]}).encode())
    settings = {"steps": 10**9, "max_rows": 10**9, "blocks": 10**9, "corrections": 10**9, "temperature": 0, "top_p": 2}
    settings |= {
        "prompts": "x",
        "guidance.x": 1,
        "guidance.image": "x",
        "nonsense": 1,
        "__class__": 1,
        "guidance": 1,
        "solver": "x",
    }
    for name, value in settings.items():
        yield f"settings.{name}: {value}", post(host, json.dumps({"settings": {name: value}}).encode())
    chats = [
        {},
        {"messages": []},
        {"messages": [{"role": "root", "content": "x"}]},
        {"messages": [{"role": "user", "content": 1}]},
    ]
    chats += [
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]} for url in URLS
    ]
    for body in chats:
        yield f"chat {str(body)[:60]}", post(host, json.dumps(body).encode(), path="/v1/chat/completions")
    for own in (
        {},
        {"prompt": 1},
        {"prompt": "x", "n": 10**6},
        {"prompt": "x", "n": 0},
        {"prompt": "x", "partial_images": 10**6},
    ):
        yield f"images {own}", post(host, json.dumps(own).encode(), path="/v1/images/generations")


URLS = (
    "file:///etc/passwd",
    "http://127.0.0.1:1/x.png",
    "/etc/passwd",
    "data:image/png,x",
    "data:text/html;base64,PGI+",
    "",
)


def pictures(host: str) -> Iterator[Case]:
    def png(width: int, height: int, *chunks: bytes) -> bytes:
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    good = saved(Image.new("L", (8, 8)), "PNG")
    images = {
        "a PNG that says 60,000 x 60,000": png(60_000, 60_000, chunk(b"IDAT", zlib.compress(b"\0" * 1000))),
        "a PNG of 100 million pixels": png(10_000, 10_000, chunk(b"IDAT", zlib.compress(b"\0" * 100_010_000, 9))),
        "a PNG whose text unpacks to 200 MB": png(
            8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(b"a" * 200_000_000, 9)), chunk(b"IDAT", b"")
        ),
        "a PNG whose profile unpacks to 200 MB": png(
            8, 8, chunk(b"iCCP", b"a\0\0" + zlib.compress(b"a" * 200_000_000, 9))
        ),
        "a PNG without pixels": png(0, 0),
        "a PNG cut off": good[:-20],
        "a PNG with a bad checksum": good[:40] + bytes([good[40] ^ 1]) + good[41:],
        "a JPEG cut off": saved(Image.new("RGB", (64, 64)), "JPEG")[:200],
        "a GIF": saved(Image.new("L", (8, 8)), "GIF"),
        "a TIFF": saved(Image.new("L", (8, 8)), "TIFF"),
        "a BMP": saved(Image.new("L", (8, 8)), "BMP"),
        "an SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "a PostScript file": b"%!PS\n(/etc/passwd) (r) file",
        "noise": random.Random(0).randbytes(10_000),
        "nothing": b"",
        "one byte": b"\x89",
    }
    for name, data in images.items():
        own = base64.b64encode(data).decode()
        yield name, post(host, json.dumps({"parts": [{"image": own}]}).encode())
        if name.startswith("a PNG"):
            yield (
                f"{name}, streamed",
                post(host, json.dumps({"parts": [{"image": own, "time": 0.5}], "stream": True}).encode()),
            )
    many = [{"image": base64.b64encode(good).decode()}] * 17
    yield "17 pictures", post(host, json.dumps({"parts": many}).encode())


def saved(picture: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind)
    return file.getvalue()


def addresses(host: str) -> Iterator[Case]:
    paths = [
        "/page/../../../etc/passwd",
        "/page/%2e%2e/%2e%2e/etc/passwd",
        "//etc/passwd",
        "/page/%00",
        "/page/",
        "/%ff",
        "/docs",
    ]
    paths += [
        "/page/..%2f..%2fserver.py",
        "/page/index.html/..",
        "/v1/generate/../../x",
        "/" + "a" * 20_000,
        "/openapi.json",
        "*",
    ]
    for path in paths:
        yield f"GET {path[:40]}", f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    for method in ("PUT", "DELETE", "TRACE", "CONNECT", "PATCH", "GET", "X" * 1000):
        yield f"{method[:20]} /v1/generate", f"{method} /v1/generate HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
    for name in (
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "[::ffff:1.2.3.4]:80",
        "",
        "localhost@evil.example",
    ):
        yield f"Host: {name}", f"GET /v1/models HTTP/1.1\r\nHost: {name}\r\n\r\n".encode()


def forms(host: str) -> Iterator[Case]:
    own = b'--b\r\nContent-Disposition: form-data; name="request"\r\n\r\n{"parts":[{"image":{"upload":"f"}}]}\r\n'
    file = b'--b\r\nContent-Disposition: form-data; name="f"; filename="../../../tmp/x"\r\n\r\n/etc/passwd\r\n'
    cases = {
        "a form without a boundary": ("multipart/form-data", own),
        "a form with another boundary": ("multipart/form-data; boundary=c", own + b"--b--\r\n"),
        "a form without its request": ("multipart/form-data; boundary=b", file + b"--b--\r\n"),
        "a form whose file is a path": ("multipart/form-data; boundary=b", own + file + b"--b--\r\n"),
        "a form without the file that it names": ("multipart/form-data; boundary=b", own + b"--b--\r\n"),
        "a form of 10,000 files": ("multipart/form-data; boundary=b", own + file * 10_000 + b"--b--\r\n"),
        "a form that does not end": ("multipart/form-data; boundary=b", own + file),
        "a boundary of 60,000 letters": (f"multipart/form-data; boundary={'b' * 60_000}", own),
        "a form with a head of a megabyte": (
            "multipart/form-data; boundary=b",
            b"--b\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n",
        ),
        "text": ("text/plain", b"{}"),
        "an address": ("application/x-www-form-urlencoded", b"request={}"),
    }
    for name, (kind, body) in cases.items():
        yield name, post(host, body, kind)


def heads(host: str) -> Iterator[Case]:
    yield "noise", random.Random(1).randbytes(4096)
    yield "TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500)
    yield "HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    yield "a head of a megabyte", f"GET / HTTP/1.1\r\nHost: {host}\r\nX: ".encode() + b"a" * 1_000_000 + b"\r\n\r\n"
    yield "50,000 headers", f"GET / HTTP/1.1\r\nHost: {host}\r\n".encode() + b"X: a\r\n" * 50_000 + b"\r\n"
    yield (
        "two lengths",
        f"POST /v1/generate HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n{{}}".encode(),
    )
    smuggled = f"POST /v1/generate HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
    yield "a length and chunks", smuggled.encode() + b"0\r\n\r\nGET /x HTTP/1.1\r\n\r\n"
    yield "a NUL in a header", f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nX: a\0b\r\n\r\n".encode()


def disconnects(host: str) -> Iterator[tuple[str, Callable]]:
    """Clients that go at every point, gently or with a reset; and one that takes nothing for a while."""
    body = json.dumps({"parts": [{"text": "count up:"}], "stream": True, "preview_steps": 1, "seed": 1}).encode()
    whole = post(host, body)
    plain = post(host, json.dumps({"parts": [{"text": "count up:"}], "seed": 2}).encode())
    head = whole.index(b"\r\n\r\n") + 4
    for is_reset in (False, True):
        how = "with a reset" if is_reset else "gently"
        for name, data, to_read in (
            ("after connecting", b"", 0),
            ("within the head", whole[:40], 0),
            ("after the head", whole[:head], 0),
            ("within the body", whole[: head + 10], 0),
            ("before the first byte", whole, 0),
            ("after the first byte", whole, 1),
            *((f"after {size} bytes", whole, size) for size in (300, 700, 1500, 3000, 6000, 12_000, 20_000)),
            ("while it waits for a whole answer", plain, 0),
        ):
            yield f"{name}, {how}", lambda own=(data, to_read, is_reset): leave(host, *own)
    yield "takes nothing for three seconds", lambda: dawdle(host, whole)


def leave(host: str, data: bytes, to_read: int, is_reset: bool) -> None:
    with connect(host) as own:
        if is_reset:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with contextlib.suppress(OSError):
            own.sendall(data)
            while to_read > 0 and (got := own.recv(to_read)):
                to_read -= len(got)


def dawdle(host: str, data: bytes) -> None:
    own = socket.socket()
    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    name, _, port = host.rpartition(":")
    with own:
        own.connect((name, int(port)))
        own.sendall(data)
        time.sleep(3.0)
        own.settimeout(PATIENCE)
        got = b""
        while b"event: done" not in got and (part := own.recv(65536)):
            got += part
        assert b"event: done" in got, "who reads late gets the end all the same"


def exchange(host: str, data: bytes) -> bytes:
    """What comes back; nothing if the connection is just closed."""
    with connect(host) as own:
        got = b""
        with contextlib.suppress(OSError):
            own.sendall(data)
        with contextlib.suppress(OSError):
            own.shutdown(socket.SHUT_WR)
        try:
            while part := own.recv(65536):
                got += part
                if is_whole(got):
                    break
        except TimeoutError:
            return got or b"HTTP/1.1 000 no answer"
        except OSError:
            pass
        return got


def is_whole(answer: bytes) -> bool:
    head, ends, body = answer.partition(b"\r\n\r\n")
    length = next(
        (line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), None
    )
    return bool(ends) and length is not None and len(body) >= int(length)


def connect(host: str) -> socket.socket:
    name, _, port = host.rpartition(":")
    return socket.create_connection((name, int(port)), timeout=PATIENCE)


def honest(url: str) -> str:
    """The digest of an ordinary document."""
    body = json.dumps({"parts": [{"text": "count up:"}], "seed": 5}).encode()
    request = urllib.request.Request(f"{url}v1/generate", body, {"Content-Type": JSON})
    with urllib.request.urlopen(request, timeout=60) as response:
        document = json.load(response)
    return hashlib.sha256(json.dumps([document["tokens"], document["pieces"]]).encode()).hexdigest()


def settle(url: str) -> None:
    """Wait until nobody is served."""
    for _ in range(100):
        with urllib.request.urlopen(f"{url}healthz", timeout=60) as response:
            state = json.load(response)
        if not state["waiting"] and not state["writing"]:
            return
        time.sleep(0.2)
    raise AssertionError(f"documents of clients that have gone are still being written: {state}")


def open_files(pid: int) -> list[str]:
    found = []
    for each in (pid, *children_of(pid)):
        for path in Path(f"/proc/{each}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.append(str(path.readlink()))
    return found


def listing(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


if __name__ == "__main__":
    main()
