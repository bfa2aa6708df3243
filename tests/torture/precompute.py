"""Kill oneflow precompute again and again, and run it twice at once: are all outputs the same bytes?

    python tests/torture/precompute.py 'raw/*.tar' scratch --kills 10 -- --autoencoder models/vae --tokenizer bytes

`scratch` gets the folders unbroken, killed and together; what follows -- is handed to every run.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import time
from contextlib import suppress
from pathlib import Path

from oneflow_dist.commands import precompute
from oneflow_dist.runtime import run_program

FINAL_SECONDS = 0.3  # in which manifest and contact sheet are made


def main() -> None:
    """Entry point."""
    args = _parse()
    import oneflow_dist.precompute.run  # noqa: F401  once, here, instead of in every run

    if "pixels" not in args.options:
        with suppress(ImportError):
            from diffusers import AutoencoderKL  # noqa: F401
    folders = {name: args.scratch / name for name in ("unbroken", "killed", "together")}
    for folder in folders.values():
        if folder.exists():
            raise ValueError(f"{folder}: exists; name a folder without it, since nothing is ever deleted")
    commands = {name: [*args.shards, str(folder), *args.options] for name, folder in folders.items()}
    _finish([_start(commands["unbroken"])], args.scratch)
    print(f"unbroken: {_num_complete(folders['unbroken'])} shards complete", flush=True)
    _kill_often(commands["killed"], folders["killed"], args)
    _finish([_start(commands["killed"])], args.scratch)
    _finish([_start(commands["together"]) for _ in range(2)], args.scratch)
    differences = [_compare(folders["unbroken"], folders[name]) for name in ("killed", "together")]
    if any(differences):
        raise ValueError(f"{args.scratch}: the outputs differ: {'; '.join(filter(None, differences))}")


def _parse() -> argparse.Namespace:
    own, options = sys.argv[1:], []
    if "--" in own:
        own, options = own[: own.index("--")], own[own.index("--") + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", nargs="+")
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--kills", type=int, default=10, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (%(default)s)")
    args = parser.parse_intermixed_args(own)
    args.options = options
    return args


def _start(command: list[str]) -> multiprocessing.process.BaseProcess:
    """The tool in a process of its own, forked so that no kill falls into the import of torch."""
    process = multiprocessing.get_context("fork").Process(target=_run, args=(command,))
    process.start()
    return process


def _run(command: list[str]) -> None:
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, sys.stdout.fileno())
    sys.argv = ["oneflow precompute", *command]
    run_program(precompute.main)


def _finish(processes: list[multiprocessing.process.BaseProcess], scratch: Path) -> None:
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise ValueError(f"{scratch}: a run ended with an error, see above")


def _kill_often(command: list[str], folder: Path, args: argparse.Namespace) -> None:
    """Kill at random moments all along the work, and for the last time when only manifest and sheet are left."""
    rng = random.Random(args.seed)
    shards = list((args.scratch / "unbroken").glob("*.tar"))
    mean_bytes = sum(shard.stat().st_size for shard in shards) / len(shards)
    moments = [*sorted(rng.uniform(0, len(shards)) for _ in range(args.kills - 1)), float(len(shards))]
    print(" kill     at shard  complete  in work")
    for kill, moment in enumerate(moments, start=1):
        began, process = time.time(), _start(command)
        while process.is_alive() and _progress(folder, began, mean_bytes) < moment:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, FINAL_SECONDS) if moment == len(shards) else 0)
        process.kill()
        process.join()
        if process.exitcode and process.exitcode > 0:
            raise ValueError(f"{folder}: a run ended with an error, see above")
        how = "" if process.exitcode else "  was done by itself"
        in_work = len(list(folder.glob("*.partial")))
        print(f"{kill:5} {moment:12.2f} {_num_complete(folder):9} {in_work:8}{how}", flush=True)


def _progress(folder: Path, began: float, mean_bytes: float) -> float:
    """Complete shards, and the parts of others that were written since `began`."""
    written = 0
    for path in folder.glob("*.tar.partial"):
        with suppress(FileNotFoundError):  # committed just now
            status = path.stat()
            written += status.st_size if status.st_mtime >= began else 0
    return _num_complete(folder) + min(written / mean_bytes, 0.999)


def _num_complete(folder: Path) -> int:
    return len(list(folder.glob("*.tar")))


def _compare(expected: Path, found: Path) -> str:
    """What differs between two folders; "" where nothing does."""
    names = sorted({path.name for folder in (expected, found) for path in folder.iterdir()})
    differing = [name for name in names if _read(expected / name) != _read(found / name)]
    verdict = f"{len(names)} files, all the same bytes" if not differing else f"{len(differing)} of {len(names)} differ"
    print(f"{found.name}: {verdict} as {expected.name}", flush=True)
    return f"{found.name}/{differing[0]}" if differing else ""


def _read(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


if __name__ == "__main__":
    run_program(main)
