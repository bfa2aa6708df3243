"""Measurements in processes of their own, most important first, until the time is up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch

from oneflow_dist.measuring.kernels import all_cases

START_SECONDS = 45.0  # what a process is expected to take until one of its kind has told
LIMIT_SECONDS = 150.0  # of one process: what hangs must not use up the time of the others
CHECKPOINTING = ("none", "selective", "full")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One measurement. Jobs of one name are rounds of the same."""

    name: str
    kind: Literal["kernels", "tune", "case", "plan", "ours", "peer"]  # a case of `kernels.all_cases` has its name
    overrides: Sequence[str] = ()  # of the config
    sequences: int = 0  # of the peer: equal documents in a step
    uses_fsdp: bool = True  # of the peer; else autocast
    needs: str = ""  # a package that must be installed


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What all jobs share."""

    config: str  # TOML file
    overrides: Sequence[str]
    steps: int  # timed in each training measurement


def all_jobs(rows: int, document_rows: int) -> list[Job]:
    """Everything worth measuring, most important first; ours and the peer take turns.

    Args:
        rows: of a step.
        document_rows: of our longest documents; the peer has documents of this length, and a pair of the longest.
    """
    tuning, kernels, first, second, *cases = kernel_jobs()
    many, pair = rows // document_rows, 2
    ours, peer = _ours("bf16", "compiled", "none"), _peer(many, rows // many, "none")
    return [
        *(tuning, kernels, first, second),
        *(ours, peer, ours, peer, _peer(pair, rows // pair, "none")),
        _ours("bf16", "compiled", "selective"),
        _peer(many, document_rows, "selective"),
        _ours("float8", "compiled", "none"),
        *cases[:8],
        *_plans("bf16"),
        _peer(pair, rows // pair, "selective"),
        _peer(many, document_rows, "none", uses_fsdp=False),
        _ours("bf16", "compiled", "full"),
        *(_ours("bf16", "eager", checkpointing) for checkpointing in CHECKPOINTING),
        *_plans("float8"),
        *(_ours("float8", "compiled", checkpointing) for checkpointing in CHECKPOINTING[1:]),
        *(_ours("float8", "eager", checkpointing) for checkpointing in CHECKPOINTING),
        *cases[8:],
    ]


def kernel_jobs() -> list[Job]:
    """The kernels' fastest launches, their numbers with those and the device itself, then contests between kernels."""
    cases = all_cases(torch.device("cpu"))  # for their names
    first = Job(name="fastest launches", kind="tune"), Job(name="kernels", kind="kernels")
    return [*first, *(Job(name=case.name, kind="case") for case in cases)]


def run_jobs(
    jobs: list[Job], settings: Settings, seconds: float, log: Path, on_end: Callable[[dict[str, Any]], None]
) -> None:
    """Run one job after the other; `on_end` gets the entry of each as soon as there is one.

    An entry has the job's name, kind and overrides, and a status: "measured" with its numbers under "measured";
    "failed" or "skipped" with a reason. A failed measurement ends its own process only.

    Args:
        seconds: for all jobs together. A job that is expected to take longer than what is left is skipped.
        log: everything that jobs print.
    """
    end = time.monotonic() + seconds
    longest: dict[str, float] = {}  # seconds by kind
    for job in jobs:
        left = end - time.monotonic()
        start = time.monotonic()
        if job.needs and find_spec(job.needs) is None:
            outcome = {"status": "skipped", "reason": "not installed"}
        elif left < longest.get(job.kind, min(START_SECONDS, seconds / 4)):
            outcome = {"status": "skipped", "reason": "no time left"}
        else:
            outcome = run_job(job, settings, min(left, LIMIT_SECONDS), log)
            longest[job.kind] = max(longest.get(job.kind, 0.0), time.monotonic() - start)
        on_end({**asdict(job), **outcome, "seconds": time.monotonic() - start})


def run_job(job: Job, settings: Settings, seconds: float, log: Path) -> dict[str, Any]:
    """Run a job in a process of its own, killed with all that it has started when its time is up."""
    result = log.with_suffix(".job.json")
    hidden = {"CUDA_VISIBLE_DEVICES": ""} if job.kind == "plan" else {}  # a plan is made without a device
    task = json.dumps({"job": asdict(job), "settings": asdict(settings), "result": str(result)})
    with log.open("a", encoding="utf-8") as output:
        output.write(f"\n===== {job.name}\n")
        output.flush()
        process = subprocess.Popen(
            [sys.executable, "-m", "oneflow_dist.measuring.measure", task],
            stdout=output,
            stderr=subprocess.STDOUT,
            process_group=0,
            env={**os.environ, **hidden},
        )
        code = _wait(process, seconds)
    answer = json.loads(result.read_text()) if result.exists() else {}
    result.unlink(missing_ok=True)
    if "measured" in answer:
        return {"status": "measured", **answer}
    if code is None:
        return {"status": "failed", "reason": f"stopped after {seconds:.0f} s"}
    return {"status": "failed", "reason": answer.get("error", f"ended with code {code} and no error; see {log.name}")}


def _wait(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """The process's exit code; None if its time was up. What it has started ends with it, or with this program."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):  # nothing of the group is left
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _ours(precision: str, mode: str, checkpointing: str) -> Job:
    compiled = f"train.compile={str(mode == 'compiled').lower()}"
    name = f"ours {precision} {mode} {checkpointing}"
    return Job(name=name, kind="ours", overrides=(*_way(precision, checkpointing), compiled))


def _peer(sequences: int, length: int, checkpointing: str, uses_fsdp: bool = True) -> Job:
    return Job(
        name=f"torchtitan {sequences} x {length} {'' if uses_fsdp else 'autocast '}{checkpointing}",
        kind="peer",
        overrides=("train.compile=true", f"train.activation_checkpointing={checkpointing}"),
        sequences=sequences,
        uses_fsdp=uses_fsdp,
        needs="torchtitan",
    )


def _plans(precision: str) -> list[Job]:
    return [
        Job(name=f"plan {precision} {checkpointing}", kind="plan", overrides=_way(precision, checkpointing))
        for checkpointing in CHECKPOINTING
    ]


def _way(precision: str, checkpointing: str) -> tuple[str, ...]:
    return f"train.precision={precision}", f"train.activation_checkpointing={checkpointing}"
