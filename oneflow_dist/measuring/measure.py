"""One measurement in this process: what `jobs` starts, with its task as the only argument."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

import torch

from oneflow_dist.config import Config, load_config
from oneflow_dist.measuring.jobs import Job, Settings
from oneflow_dist.measuring.kernels import measure_kernels
from oneflow_dist.measuring.peer import measure_peer
from oneflow_dist.measuring.training import measure_training, plan_training
from oneflow_dist.runtime import end_process, start_process


def measure(job: Job, settings: Settings) -> dict[str, Any]:
    """The numbers of a job. One pack a step: this measures one device, not a cluster's batch."""
    overrides = ["data.packs_per_step=1", *settings.overrides, *job.overrides]
    config = load_config(settings.config, overrides)
    if job.kind == "plan":
        return plan_training(config)
    device = start_process()
    measured = _measure_on(device, job, settings, config)
    end_process()
    return measured


def _measure_on(device: torch.device, job: Job, settings: Settings, config: Config) -> dict[str, Any]:
    if job.kind == "kernels":
        return measure_kernels(device)
    if job.kind == "peer":
        return measure_peer(config, job.sequences, job.uses_fsdp, settings.steps, device)
    return measure_training(config, settings.steps, device)


def telling_errors(result: Path) -> Callable[[type[BaseException], BaseException, TracebackType | None], None]:
    """A hook for exceptions that nobody catches: the first line of the message goes to the result file."""

    def tell(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
        first = str(error).strip().partition("\n")[0]
        result.write_text(json.dumps({"error": f"{kind.__name__}: {first}"}))
        sys.__excepthook__(kind, error, at)
        leave(1)

    return tell


def main() -> None:
    """Entry point."""
    task = json.loads(sys.argv[1])
    result = Path(task["result"])
    sys.excepthook = telling_errors(result)
    lists = {key: tuple(task[key].pop("overrides")) for key in ("job", "settings")}
    job = Job(**task["job"], overrides=lists["job"])
    settings = Settings(**task["settings"], overrides=lists["settings"])
    result.write_text(json.dumps({"measured": measure(job, settings)}))
    leave(0)


def leave(code: int) -> NoReturn:
    """End without the interpreter's shutdown, in which the threads of process groups and compilers may hang."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
