"""What a job says to the program that started it, and waits to have acknowledged."""

from __future__ import annotations

import json
import os
import sys
from types import TracebackType
from typing import Any, NoReturn


class Link:
    """Lines of JSON on what was the standard output; what anybody else prints there goes to the log instead.

    Args:
        is_warming: end where the device would be asked for.
    """

    def __init__(self, is_warming: bool):
        self.is_warming = is_warming
        self.out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def tell(self, kind: str, **numbers: Any) -> None:
        """A number; when this returns it is on the disk."""
        self.out.write(json.dumps({"kind": kind, **numbers}) + "\n")
        self.out.flush()
        if not sys.stdin.readline():
            leave(1)  # nobody is there any more

    def ready(self) -> None:
        """Everything is compiled; when this returns no job of less worth runs, on the device or beside it."""
        if self.is_warming:
            leave(0)
        self.tell("ready")

    def on_error(self, kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
        """As `sys.excepthook`: the whole error to the log, its first line to the results."""
        sys.__excepthook__(kind, error, at)
        self.tell("failure", reason=in_a_line(error))
        leave(1)


def in_a_line(error: BaseException) -> str:
    """Its kind and the first line of its message, with the next where that only announces it."""
    first, _, rest = str(error).strip().partition("\n")
    second = rest.strip().partition("\n")[0] if first.endswith(":") else ""
    return f"{type(error).__name__}: {first} {second}".rstrip()


def main() -> None:
    """Entry point of a job, with its task as the only argument."""
    task = json.loads(sys.argv[1])
    link = Link(task["job"]["is_warming"])
    sys.excepthook = link.on_error
    from tools.benchmark.measure import measure_task  # here: a package that is missing is a result, too

    measure_task(task, link)
    leave(0)


def leave(code: int) -> NoReturn:
    """End without the interpreter's shutdown, in which the threads of process groups and compilers may hang."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
