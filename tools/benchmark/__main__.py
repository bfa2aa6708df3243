"""All benchmarks of this project: `python -m tools.benchmark train configs/oneflow_1b.toml`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oneflow_dist.config import Config, load_config
from oneflow_dist.runtime import end_process, is_main, run_program, start_process

if TYPE_CHECKING:
    from tools.benchmark.result import Measured

# What a command measures with is imported when it runs, since torch takes seconds: what is wrong on the command line
# has been answered by then.


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.epilog = "\n".join(f"  {name:<12}{run.__doc__}" for name, (run, _) in COMMANDS.items())
    parser.add_argument("command", choices=COMMANDS, metavar="command", help="it has --help of its own")
    name = parser.parse_args(sys.argv[1:2]).command
    run, arguments = COMMANDS[name]
    parser = argparse.ArgumentParser(prog=f"python -m tools.benchmark {name}", description=run.__doc__)
    parser.set_defaults(words=sys.argv[1:])
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks", name), help="folder of the results")
    parser.add_argument("--commit", default="", help="of this code, where its folder is a copy without git")
    for word, options in arguments.items():
        parser.add_argument(word, **options)
    run(parser.parse_intermixed_args(sys.argv[2:]))


def train(args: argparse.Namespace) -> None:
    """Steps of a run, also under torchrun: rates, MFU and HFU, phases, memory, power."""
    config = load_config(args.config, args.overrides)
    device = start_process(config.data.workers, config.train.deterministic)
    from tools.benchmark.train import measure

    finish(args, measure(config, args.steps, args.warmup, args.synthetic, args.peer, device), config)
    end_process()


def flops(args: argparse.Namespace) -> None:
    """What a document costs, by part, beside autoregression; no data, no device."""
    from tools.benchmark.flops import measure

    config = load_config(args.config, args.overrides)
    finish(args, measure(config, args.text_tokens, args.image_rows, args.documents), config)


def finish(args: argparse.Namespace, measured: Measured, config: Config | None = None) -> None:
    """Write and print what was measured."""
    from tools.benchmark.machine import describe_machine
    from tools.benchmark.result import Result

    if is_main():
        result = Result(
            command=["python", "-m", "tools.benchmark", *args.words],
            config=dataclasses.asdict(config) if config else {},
            machine={**describe_machine(args.commit), "ranks": int(os.environ.get("WORLD_SIZE", "1"))},
            measured=measured,
        )
        result.write(args.output)
        print(f"{result.report()}\nwrote {args.output}", flush=True)


def at_least(least: int) -> Callable[[str], int]:
    """What argparse turns words into numbers with."""

    def read(word: str) -> int:
        if not word.isdecimal() or int(word) < least:
            raise argparse.ArgumentTypeError(f"{word!r} is no whole number of at least {least}")
        return int(word)

    return read


CONFIG: dict[str, dict[str, Any]] = {
    "config": {"help": "TOML file, as configs/quickstart.toml"},
    "overrides": {"nargs": "*", "metavar": "section.key=value", "help": "values are TOML"},
}
# What runs, and its arguments as argparse takes them.
COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], None], dict[str, dict[str, Any]]]] = {
    "train": (
        train,
        CONFIG
        | {
            "--steps": {"type": at_least(1), "default": 20, "help": "that are timed"},
            "--warmup": {"type": at_least(0), "default": 5, "help": "steps before them, which compile"},
            "--synthetic": {"action": "store_true", "help": "made-up packs on the device, not the config's data"},
            "--peer": {"action": "store_true", "help": "then torchtitan's Llama of the same shape; one rank"},
        },
    ),
    "flops": (
        flops,
        CONFIG
        | {
            "--text-tokens": {"type": at_least(1), "default": 512, "help": "of a document"},
            "--image-rows": {"type": at_least(0), "default": 0, "help": "of its image; 0: it has none"},
            "--documents": {"type": at_least(1), "default": 20_000, "help": "that are noised"},
        },
    ),
}

if __name__ == "__main__":
    run_program(main)
