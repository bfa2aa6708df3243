"""Jobs as processes of their own, in an environment for a machine without a network."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from tools.benchmark.jobs import Job
from tools.benchmark.report import Line

GET_FLAGS, SET_FLAGS, IS_UP = 0x8913, 0x8914, 1  # of a network interface: see `man netdevice`
MEASURE = (sys.executable, "-c", "from tools.benchmark.link import main; main()")


class Machine:
    """This machine's clock and processes.

    Args:
        command: of a job; its last argument is its task as JSON: the job beside `shared`.
        shared: what all jobs have to know.
        log: gets what jobs print.
    """

    def __init__(self, shared: Mapping[str, Any], processes: int, log: Path, command: Sequence[str] = MEASURE):
        self.command, self.shared, self.log = command, shared, log
        self.environment = {**os.environ, **environment(processes)}
        raise_loopback()

    def now(self) -> float:
        """Seconds."""
        return time.monotonic()

    def start(self, job: Job) -> Child:
        """A process group of its own, so that it is stopped and killed with all that it starts."""
        task = json.dumps({"job": asdict(job), **self.shared})
        with self.log.open("ab") as log:
            return Child([*self.command, task], log, self.environment)

    def wait(self, processes: Sequence[Child], seconds: float) -> None:
        """Until one of them says something, or `seconds`."""
        pipes = [process.pipe for process in processes if not process.is_deaf]
        if pipes:
            select.select(pipes, [], [], seconds)
        else:
            time.sleep(seconds)


class Child:
    """A job's process: it says a line of JSON at a time on its standard output, and reads a line as the answer."""

    def __init__(self, command: Sequence[str], log: IO[bytes], environment: Mapping[str, str]):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
        self.process = subprocess.Popen(command, process_group=0, env=environment, **pipes)  # type: ignore[call-overload]
        self.pipe: IO[bytes] = self.process.stdout
        self.is_deaf = False  # it has closed its end: there is nothing left to wait for
        self.rest = b""
        os.set_blocking(self.pipe.fileno(), False)

    def messages(self) -> list[Line]:
        """What it has said since it was last asked."""
        while (heard := self.pipe.read(1 << 16)) is not None:
            if not heard:
                self.is_deaf = True
                break
            self.rest += heard
        *whole, self.rest = self.rest.split(b"\n")
        return [json.loads(line) for line in whole]

    def answer(self) -> None:
        """Let it go on."""
        with suppress(BrokenPipeError):  # it has ended, which its code tells
            self.process.stdin.write(b"\n")
            self.process.stdin.flush()

    def pause(self) -> None:
        """Stop it with all that it has started."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it run again."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it with all that it has started, which it may have left behind."""
        self._signal(signal.SIGKILL)
        self.process.wait()
        self.pipe.close()
        with suppress(BrokenPipeError):
            self.process.stdin.close()

    def code(self) -> int | None:
        """Its exit code; None while it runs."""
        return self.process.poll()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):  # nothing of the group is left
            os.killpg(self.process.pid, number)


def environment(processes: int) -> dict[str, str]:
    """What jobs need beside what there is: one cache for all, no more compilers than cores, no network."""
    cache = Path(tempfile.gettempdir()) / f"oneflow-compiled-{os.getuid()}"
    return {
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "TORCHINDUCTOR_COMPILE_THREADS": str(max(1, (os.cpu_count() or 1) // processes)),
        "MASTER_ADDR": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
    }


def raise_loopback() -> None:
    """Where even the loopback is down, as in a fresh network namespace, raise it, if we may: process groups listen."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, suppress(PermissionError):
        name, flags = struct.unpack("16sH14x", fcntl.ioctl(sock, GET_FLAGS, struct.pack("16sH14x", b"lo", 0)))
        if not flags & IS_UP:
            fcntl.ioctl(sock, SET_FLAGS, struct.pack("16sH14x", name, flags | IS_UP))
