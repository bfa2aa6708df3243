"""Serve trained models: a page where documents come about before one's eyes, and an API for programs."""

from __future__ import annotations

import argparse
import ipaddress
import os
import secrets
from pathlib import Path

from oneflow_dist.extras import require
from oneflow_dist.runtime import run_program
from oneflow_dist.toml import check_range

TOKEN = "ONEFLOW_TOKEN"  # the name of a variable
COUNTS = {
    "max_rows": ("rows of one document; default: sampling.max_rows of each model", "[0, inf)"),
    "writing": ("documents that one process writes together", "[1, inf)"),
    "waiting": ("requests that may wait for each model", "[0, inf)"),
    "requests_per_minute": ("POST requests of one address; 0: any number", "[0, inf)"),
    "body_bytes": ("of one request", "[1024, inf)"),
    "pixels": ("of all pictures given in one request", "[1, inf)"),
}


def main() -> None:
    """Entry point."""
    args = parse_arguments()
    models: dict[str, str] = {}
    for run in args.runs:
        name = run.resolve().name
        if name in models:
            raise ValueError(f"RUN: {models[name]} and {run} are both called {name}; rename one")
        models[name] = str(run)
    require("oneflow serve", "serve", "starlette", "uvicorn", "python_multipart", "prometheus_client", "pydantic")
    token = read_token(args.host)
    # Only now, since it takes seconds: what is wrong on the command line has been answered by then.
    from oneflow_dist.serving.app import Server
    from oneflow_dist.serving.measures import Measures
    from oneflow_dist.serving.orders import Limits
    from oneflow_dist.serving.scheduler import Scheduler
    from oneflow_dist.serving.server import open_socket, run_server

    limits = Limits(**{name: getattr(args, name) for name in COUNTS if getattr(args, name) is not None})
    own = open_socket(args.host, args.port, limits)
    devices, num_threads = count_devices(len(models))
    print(f"loading {', '.join(map(str, args.runs))}", flush=True)
    measures = Measures()
    scheduler = Scheduler(limits, measures.watch)
    scheduler.start(models, devices, num_threads)
    for name, card in scheduler.cards.items():
        print(f"{name}: {card.num_parameters:,} parameters, step {card.step}", flush=True)
    host, port = own.getsockname()[:2]
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    print(f"serving on {address}{f'?token={token}' if token else ''}", flush=True)
    run_server(Server(scheduler=scheduler, limits=limits, measures=measures, runs=models), own, token)


def parse_arguments() -> argparse.Namespace:
    """The command line; numbers out of their ranges are refused here."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"Where --host is not this machine's own loopback, requests need a token: that of the variable {TOKEN}, "
        "or one that is made and printed.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders, or folders of checkpoints")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free (%(default)s)")
    for name, (what, _) in COUNTS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=what)
    args = parser.parse_args()
    check_range("--port", args.port, "[0, 65535]")
    for name, (_, interval) in COUNTS.items():
        if getattr(args, name) is not None:
            check_range(f"--{name.replace('_', '-')}", getattr(args, name), interval)
    return args


def read_token(host: str) -> str:
    """What requests have to say; nothing where the server listens to this machine alone."""
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    own = os.environ.get(TOKEN, "").strip()
    return own or ("" if is_loopback else secrets.token_urlsafe(24))


def count_devices(num_models: int) -> tuple[int, int]:
    """GPUs, or the CPU as one; and on this the threads of each model's process, with a core left for this one."""
    import torch

    cores = len(os.sched_getaffinity(0))
    threads = int(os.environ.get("OMP_NUM_THREADS", max(1, (cores - 1) // num_models)))
    return max(1, torch.cuda.device_count()), threads


if __name__ == "__main__":
    run_program(main)
