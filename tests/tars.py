"""Small shards for tests: tars, what lies in them, mixtures of them, and a server that they are fetched from."""

from __future__ import annotations

import http.server
import io
import json
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from oneflow_dist.data.latents import encode_array
from oneflow_dist.data.tar import HEADER_KEY

PAIRS = {"0001.png": b"first image", "0001.txt": b"one", "0002.txt": b"two", "0002.png": b"second image"}


def write_tar(path: Path, members: dict[str, bytes], header: dict[str, Any] | None = None) -> Path:
    """A tar of `members` by name; `header` is what the writer of a shard says of it."""
    pax_headers = {HEADER_KEY: json.dumps(header)} if header is not None else {}
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers=pax_headers) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def samples_of(*shards: Path) -> list[dict[str, bytes]]:
    """The files of every sample by extension."""
    found: dict[str, dict[str, bytes]] = {}
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                file = tar.extractfile(member)
                assert file is not None
                found.setdefault(key, {})[extension] = file.read()
    return list(found.values())


def png(level: int, size: tuple[int, int] = (8, 8)) -> bytes:
    """A grey picture of one brightness."""
    buffer = io.BytesIO()
    Image.new("L", size, level).save(buffer, format="PNG")
    return buffer.getvalue()


def npy(values: Any, dtype: str = "<f4") -> bytes:
    """An array as the content of an .npy file."""
    return encode_array(np.asarray(values, dtype=dtype))


def write_sources(folder: Path) -> str:
    """Shards of three kinds of samples, and the `sources` of a mixture of them.

    latents   60 captioned images, each as a posterior with its mirrored twin, in two shards
    stories   40 documents of 1 to 3 texts and 0 to 2 pictures
    notes     120 texts, of which a filter leaves out half
    """
    rng = np.random.default_rng(0)
    autoencoder = {"autoencoder": {"name": "pixels", "scaling_factor": 0.5, "shift_factor": 0.1}}
    for shard in range(2):
        members = {}
        for number in range(30):
            key = f"{shard}-{number:03d}"
            for twin in ("", "mirrored."):
                members[f"{key}.{twin}npy"] = npy(np.abs(rng.standard_normal((2, 1, 8, 4 + 4 * (number % 2)))), "<f2")
            members[f"{key}.txt"] = f"image {key}".encode()
        write_tar(folder / f"latents-{shard}.tar", members, autoencoder)
    members = {}
    for number in range(40):
        segments: list[dict[str, str]] = []
        for part in range(1 + number % 3):
            segments.append({"type": "text", "text": f"part {part} of {number}"})
            if part < number % 4 % 3:
                segments.append({"type": "image", "image": f"{part}.png"})
                members[f"{number:03d}.{part}.png"] = png(int(rng.integers(256)))
        members[f"{number:03d}.json"] = json.dumps({"segments": segments}).encode()
    write_tar(folder / "stories-0.tar", members)
    members = {}
    for number in range(120):
        members[f"{number:03d}.txt"] = b"note " * int(rng.integers(1, 6)) + str(number).encode()
        members[f"{number:03d}.json"] = json.dumps({"score": number % 2}).encode()
    write_tar(folder / "notes-0.tar", members)
    return (
        "{"
        f"latents: {{shards: '{folder}/latents-*.tar', weight: 3, tasks: {{both: 1, text_to_image: 1}}}}, "
        f"stories: {{shards: '{folder}/stories-0.tar', weight: 2, tasks: {{interleaved: 1}}, prompt: 'tell: '}}, "
        f"notes: {{shards: '{folder}/notes-0.tar', weight: 5, tasks: {{text_only: 1}}, "
        "filters: {score: {min: 0.5}}}}"
    )


@contextmanager
def serve(folder: Path) -> Iterator[tuple[str, Counter[str]]]:
    """The address at which the files of a folder can be fetched, and how often each was."""
    fetched = Counter[str]()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            fetched[self.path.removeprefix("/")] += 1
            super().do_GET()

        def translate_path(self, path: str) -> str:
            return str(folder / path.removeprefix("/"))

        def log_message(self, *_: object) -> None:
            pass

    with answering(Handler) as address:
        yield address, fetched


@contextmanager
def answering(handler: Callable[..., http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address at which a handler answers."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
