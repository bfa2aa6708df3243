"""What a request may ask for, and how many may ask: everything that a stranger could make large has an end here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of a server. Seconds are of one wait, not of a whole request."""

    body_bytes: int = 16 * 2**20
    parts: int = 256  # of one prompt, or one conversation
    pictures: int = 16  # given in one request
    pixels: int = 16 * 2**20  # of one given picture
    characters: int = 100_000  # of all text in one request
    documents: int = 8  # that one request may ask for
    waiting: int = 256  # requests that may wait
    writing: int = 32  # documents that one process writes together
    connections: int = 1024
    requests_per_minute: int = 600  # of one address; 0: any number
    body_seconds: float = 30.0  # in which a request has to arrive
    head_seconds: float = 10.0  # in which its head has to
    read_seconds: float = 60.0  # a client that takes no byte for so long is cut off
    backlog: int = 64  # events that wait for a client, from which on it gets no pictures in the making
    steps: int = 1000
    corrections: int = 16
    blocks: int = 64
    canvas_tokens: int = 4096
    max_rows: int = 0  # of one document; 0: as many as the model's config says
