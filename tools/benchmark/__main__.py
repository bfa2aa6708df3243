"""All benchmarks of this project: `python -m tools.benchmark train configs/oneflow_1b.toml`."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oneflow_dist.config import Config, load_config
from oneflow_dist.extras import require
from oneflow_dist.planning.gpus import find_gpu
from oneflow_dist.runtime import end_process, is_main, run_program, start_process

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tools.benchmark.result import Measured, Series

# What a command measures with is imported when it runs, since torch takes seconds: what is wrong on the command line
# has been answered by then.


def main() -> None:
    """Entry point."""
    # argparse's own name of the program, but where that is a file that nobody has typed.
    prog = "python -m tools.benchmark" if Path(sys.argv[0]).name == "__main__.py" else None
    parser = argparse.ArgumentParser(
        prog=prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.epilog = "\n".join(f"  {name:<12}{run.__doc__}" for name, (run, _) in COMMANDS.items())
    parser.add_argument("command", choices=COMMANDS, metavar="command", help="it has --help of its own")
    name = parser.parse_args(sys.argv[1:2]).command
    run, arguments = COMMANDS[name]
    parser = argparse.ArgumentParser(prog=f"{parser.prog} {name}", description=run.__doc__)
    parser.set_defaults(words=sys.argv[1:])
    parser.add_argument("--output", type=Path, default=Path("runs/benchmarks", name), help="folder of the results")
    parser.add_argument("--commit", default="", help="of this code, where its folder is a copy without git")
    for word, options in arguments.items():
        parser.add_argument(word, **options)
    args = parser.parse_intermixed_args(sys.argv[2:])
    require(f"{parser.prog}, which draws what it measures,", "evaluate", "matplotlib")  # before it measures for long
    run(args)


def train(args: argparse.Namespace) -> None:
    """Steps of a run, also under torchrun: rates, MFU and HFU, phases, memory, power."""
    config = load_config(args.config, args.overrides)
    device = start_process(config.data.workers, config.train.deterministic)
    from tools.benchmark.train import measure

    finish(args, measure(config, args.steps, args.warmup, args.synthetic, args.peer, device), config)
    end_process()


def flops(args: argparse.Namespace) -> None:
    """What a document costs, by part, beside autoregression; needs no device."""
    config = load_config(args.config, args.overrides)
    from tools.benchmark.objective_flops import measure

    finish(args, measure(config, args.text_tokens, args.image_rows, args.documents, args.steps), config)


def data(args: argparse.Namespace) -> None:
    """Samples a second of one data worker, by stage, beside webdataset."""
    config = load_config(args.config, args.overrides)
    device = start_process()
    from tools.benchmark.data import measure, with_made_up_shards

    with tempfile.TemporaryDirectory() as folder:
        read = with_made_up_shards(config, Path(folder), args.samples) if args.made_up else config
        finish(args, measure(read, args.samples, args.rounds, device), config)
    end_process()


def sample(args: argparse.Namespace) -> None:
    """How fast documents are written: latency by length, documents a second by batch."""
    is_config = args.source.suffix == ".toml"
    if args.overrides and not is_config:
        raise ValueError(
            f"{args.overrides[0]}: {args.source} is a checkpoint, whose config is its own; name a TOML file"
        )
    config = load_config(args.source, args.overrides) if is_config else None
    device = start_process()
    from oneflow_dist.trained import load_model
    from tools.benchmark.sample import first_model, measure

    model, config = (first_model(config, device), config) if config else load_model(args.source)
    rows = args.rows or [config.sampling.max_rows]
    finish(args, measure(model, config, rows, args.documents, args.rounds, not is_config), config)
    end_process()


def prompts(args: argparse.Namespace) -> None:
    """What kept prompts save, by their length; documents written in blocks and as a whole, by theirs."""
    config = load_config(args.config, [*args.overrides, "model.prompt_sees=prompt"])
    device = start_process()
    from tools.benchmark import blocks, prompts
    from tools.benchmark.curves import draw_curves
    from tools.benchmark.result import Measured

    model = prompts.random_model(config, device)
    kept = prompts.measure(model, config, args.rows, args.documents)
    written = blocks.measure(model, config, args.lengths, args.steps)
    both = Measured(series=kept.series | written.series, notes=[*kept.notes, *written.notes])
    finish(args, both, config, draw_curves)
    end_process()


def latency(args: argparse.Namespace) -> None:
    """Documents of forced length, token by token and by insertion: seconds, forwards, rows; by plan on another GPU."""
    config = load_config(args.config, [*args.overrides, "model.prompt_sees=prompt"])
    planned = load_config(args.plan) if args.plan else None
    gpu = find_gpu(args.gpu)
    device = start_process()
    from tools.benchmark.latency import measure, shapes_of
    from tools.benchmark.latency_curves import draw_latency
    from tools.benchmark.latency_plan import plan
    from tools.benchmark.result import Measured

    lengths = args.texts, args.images, args.prompt, args.steps
    measured = measure(config, shapes_of(config, *lengths), args.documents, args.rounds, device)
    if planned:
        by_plan = plan(planned, gpu, shapes_of(planned, *lengths), args.documents)
        measured = Measured(series=measured.series | by_plan.series, notes=[*measured.notes, *by_plan.notes])
    finish(args, measured, config, draw_latency)
    end_process()


def balance(args: argparse.Namespace) -> None:
    """Attention work of ranks by how packs are chosen and by lengths of documents: spread, padding, waiting."""
    from tools.benchmark.balance import KINDS, measure
    from tools.benchmark.balance_curves import draw_balance

    finish(args, measure(KINDS, args.ranks, args.steps), draw=draw_balance)


def serving(args: argparse.Namespace) -> None:
    """Many users of a server beside one after the other: documents a second, waiting, memory, equal answers."""
    require("oneflow benchmark serving", "experiments", "aiohttp")
    from tools.benchmark.serving import measure

    finish(args, measure(args.run, args.users, args.documents, args.rounds, args.requests))


def checkpoint(args: argparse.Namespace) -> None:
    """How long a checkpoint holds up a run, in the foreground, in the background and to memory; also under torchrun."""
    config = load_config(args.config, args.overrides)
    if Path(config.run.folder).exists():
        raise ValueError(f"{config.run.folder}: is there already, and would be deleted; name another run.folder")
    device = start_process(config.data.workers)  # after which all have looked
    from tools.benchmark.checkpoint import measure

    finish(args, measure(config, args.rounds, args.steps, device), config)
    end_process()


def precompute(args: argparse.Namespace) -> None:
    """What oneflow precompute costs beside the bare encoder."""
    from tools.benchmark.precompute import measure

    finish(args, measure(args.shards, args.autoencoder, args.size, args.rounds))


def kernels(args: argparse.Namespace) -> None:
    """Launches, errors and contests of the kernels, as docs/gpu.md has them; code 1 if a kernel is wrong."""
    from tools.benchmark.run import measure_part

    part = "check" if args.check else "kernels"
    sys.exit(measure_part(part, args.config, args.overrides, args.output, args.minutes, args.commit, args.only))


def compare(args: argparse.Namespace) -> None:
    """Two results of one command: ratios with a bound of their noise."""
    from tools.benchmark.compare import bounds_of, compare_results
    from tools.benchmark.drawing import draw_ratios
    from tools.benchmark.result import read_results

    measured = compare_results(read_results(args.a), read_results(args.b), args.unlike)
    finish(args, measured, draw=lambda *_: draw_ratios(bounds_of(measured), "\n".join(measured.notes[:2])))


def finish(
    args: argparse.Namespace,
    measured: Measured,
    config: Config | None = None,
    draw: Callable[[Series, str], Figure] | None = None,
) -> None:
    """Write and print what was measured, with a picture of it, which has a title; by default `draw_series`."""
    if not is_main():
        return
    from tools.benchmark.drawing import draw_series
    from tools.benchmark.machine import describe_machine
    from tools.benchmark.result import Result

    options = {key: value for key, value in vars(args).items() if key not in (*CONFIG, "words", "output", "commit")}
    result = Result(
        command=["python", "-m", "tools.benchmark", *args.words],
        options={key: str(value) if isinstance(value, Path) else value for key, value in options.items()},
        config=dataclasses.asdict(config) if config else {},
        machine={**describe_machine(args.commit), "ranks": int(os.environ.get("WORLD_SIZE", "1"))},
        measured=measured,
    )
    result.write(args.output, (draw or draw_series)(measured.series, result.describe()))
    print(f"{result.report()}\nwrote {args.output}", flush=True)


def at_least(least: int) -> Callable[[str], int]:
    """What argparse turns words into numbers with."""

    def read(word: str) -> int:
        if not word.isdecimal() or int(word) < least:
            raise argparse.ArgumentTypeError(f"{word!r} is no whole number of at least {least}")
        return int(word)

    return read


def number(default: int, text: str, least: int = 1) -> dict[str, Any]:
    """The options of an argument that is a whole number."""
    return {"type": at_least(least), "default": default, "help": f"{text}; {default}"}


def several(text: str, *default: int, least: int = 1) -> dict[str, Any]:
    """The options of an argument that is one or more whole numbers."""
    said = f"{text}; {', '.join(map(str, default))}"
    return {"type": at_least(least), "nargs": "+", "default": list(default), "help": said}


OVERRIDES = {"overrides": {"nargs": "*", "metavar": "section.key=value", "help": "values are TOML"}}
CONFIG: dict[str, Any] = {"config": {"help": "TOML file, as configs/quickstart.toml"}, **OVERRIDES}
# What runs, and its arguments as argparse takes them.
COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], None], dict[str, dict[str, Any]]]] = {
    "train": (
        train,
        {
            **CONFIG,
            "--steps": number(20, "that are timed"),
            "--warmup": number(5, "steps before them, which compile", least=0),
            "--synthetic": {"action": "store_true", "help": "made-up packs on the device, not the config's data"},
            "--peer": {"action": "store_true", "help": "then torchtitan's Llama of the same shape; one rank"},
        },
    ),
    "flops": (
        flops,
        {
            **CONFIG,
            "--text-tokens": number(512, "of a document"),
            "--image-rows": number(0, "of its image, 0 for none", least=0),
            "--documents": number(20_000, "that are noised"),
            "--steps": number(0, "of the config's data that are counted beside them", least=0),
        },
    ),
    "data": (
        data,
        {
            **CONFIG,
            "--samples": number(4096, "of a round"),
            "--rounds": number(5, "of each side, in turn"),
            "--made-up": {"action": "store_true", "help": "captioned latents of the config's shape, not its mixture"},
        },
    ),
    "sample": (
        sample,
        {
            "source": {"type": Path, "help": "run folder, checkpoint, or TOML file for first weights"},
            **OVERRIDES,
            "--rows": {"type": at_least(1), "nargs": "+", "help": "of a document at most; sampling.max_rows"},
            "--documents": several("at once", 1, 4),
            "--rounds": number(3, "of each case"),
        },
    ),
    "prompts": (
        prompts,
        {
            "config": {
                "nargs": "?",
                "default": "configs/quickstart.toml",
                "help": "TOML file; configs/quickstart.toml",
            },
            **OVERRIDES,
            "--rows": several("of a prompt", 64, 256, 1024, 4096),
            "--documents": several("in one forward", 1, 4),
            "--lengths": several("of documents, in rows", 128, 512, 1024, 2048, 4096),
            "--steps": number(10, "of a block, and of a whole document"),
        },
    ),
    "latency": (
        latency,
        {
            **CONFIG,
            "--texts": several("text tokens of a document", 100, 500, 1000),
            "--images": several("in a document", 0, 1, 3, least=0),
            "--steps": number(40, "of an image, and of a text by insertion"),
            "--prompt": number(64, "tokens in front", least=0),
            "--documents": several("at once", 1, 8),
            "--rounds": number(3, "of each case, all ways in turn"),
            "--plan": {"metavar": "CONFIG", "help": "the same by counts for the model of this TOML file"},
            "--gpu": {"default": "h100-80gb", "help": "that is planned for; h100-80gb"},
        },
    ),
    "balance": (
        balance,
        {
            "--ranks": number(64, "of a step, each with one pack", least=2),
            "--steps": number(20, "that are counted"),
        },
    ),
    "serving": (
        serving,
        {
            "run": {"type": Path, "help": "run folder"},
            "--users": number(32, "at once"),
            "--documents": number(128, "of each round, for one user after the other and for all"),
            "--rounds": number(3, "of both, in turn"),
            "--requests": number(1000, "more, while memory is looked at"),
        },
    ),
    "kernels": (
        kernels,
        {
            "--check": {"action": "store_true", "help": "only the numbers, against float64"},
            "--config": {"default": "configs/oneflow_1b.toml", "help": "whose packs and widths some contests have"},
            **OVERRIDES,
            "--minutes": {"type": float, "default": 8.5, "help": "for everything; what does not fit is left out"},
            "--only": {"default": "", "metavar": "TEXT", "help": "only jobs with this in their names"},
        },
    ),
    "checkpoint": (
        checkpoint,
        {
            **CONFIG,
            "--rounds": number(3, "saves of each kind"),
            "--steps": number(4, "after each save; the write should be done by their end"),
        },
    ),
    "precompute": (
        precompute,
        {
            "shards": {"nargs": "+", "help": "brace or wildcard patterns of raw tars"},
            "--autoencoder": {"required": True, "help": "folder with a diffusers AutoencoderKL"},
            "--size": number(64, "of pictures, as oneflow precompute --size"),
            "--rounds": number(3, "measurements of each, in turn"),
        },
    ),
    "compare": (
        compare,
        {
            "a": {"type": Path, "help": "result.json or its folder, or a folder of such folders: several runs"},
            "b": {"type": Path, "help": "others; ratios are B / A"},
            "--unlike": {"action": "store_true", "help": "also of other machines, options or configs"},
        },
    ),
}

if __name__ == "__main__":
    run_program(main)
