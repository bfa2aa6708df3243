"""What a job tells, kept."""

from __future__ import annotations

from typing import Any

from tools.benchmark.link import Link
from tools.benchmark.report import Line


class Kept(Link):
    """A link to nobody; `ready` stands among the lines where the device was asked for."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def tell(self, kind: str, **numbers: Any) -> None:
        self.lines.append({"kind": kind, **numbers})

    def ready(self) -> None:
        self.tell("ready")
