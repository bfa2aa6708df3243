"""Generate documents from a checkpoint: text, pieces, and a trace of which token and piece appeared when."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from oneflow_dist.commands.sample_files import (
    FILM,
    STEPS,
    TRACE,
    claim,
    describe_call,
    read_lines,
    write_documents,
    write_film,
)
from oneflow_dist.config import RANGES, check_config
from oneflow_dist.files import naming
from oneflow_dist.modality import GIVEN
from oneflow_dist.runtime import end_process, is_main, log, run_program, start_process
from oneflow_dist.sampling import Firing, Remasking, Solver, WeakModel
from oneflow_dist.toml import check_range

if TYPE_CHECKING:
    from collections.abc import Sequence

    from oneflow_dist.canvas import Prompt
    from oneflow_dist.config import Config
    from oneflow_dist.data.tokenizer import Tokenizer
    from oneflow_dist.model.oneflow import OneFlow

NUMBERS = (
    ("steps", int),
    ("time_power", float),
    ("clock_share", float),
    ("corrections", int),
    ("corrected_from", float),
    ("shift", float),
    ("churn", float),
    ("guidance_from", float),
    ("guidance_until", float),
    ("weak_temperature", float),
    ("temperature", float),
    ("top_k", int),
    ("top_p", float),
    ("max_rows", int),
    ("blocks", int),
    ("canvas_tokens", int),
)
CHOICES = {
    "firing": get_args(Firing),
    "remasking": get_args(Remasking),
    "solver": get_args(Solver),
    "weak_model": get_args(WeakModel),
    "given": GIVEN,
}
# What has a value for each name: its kind, what the value is called, an example, what it is.
TABLES: dict[str, tuple[type, str, str, str]] = {
    "guidance": (float, "WEIGHT", "image=3", "of a modality's velocity, or of the text: gate, rate and tokens"),
    "piece_steps": (int, "N", "image=16", "steps of a modality's pieces once the text is done"),
}
FORMATS = {"jsonl": f"what each step changed in {STEPS}", "gif": f"how they came about in {FILM}"}


class _Append(argparse.Action):
    """Collects the parts of the prompt into one list, in the order in which they were given."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.parts = [*namespace.parts, (self.dest, values)]


def main() -> None:
    """Entry point."""
    args = parse_arguments()
    log(f"loading {args.checkpoint}")
    start_process(data_workers=1)  # with whatever else runs here
    # Only now, since it takes seconds: what is wrong on the command line has been answered by then.
    from oneflow_dist.commands.prompts import check_prompts, read_prompts
    from oneflow_dist.data.tokenizer import load_tokenizer
    from oneflow_dist.pictures import check_decoders
    from oneflow_dist.trained import config_at_home, find_checkpoint, load_weights, progress_of

    folder = find_checkpoint(args.checkpoint)
    home, settings = config_at_home(folder), settings_of(args.axes)
    configs = [with_arguments(home, with_setting(args, setting)) for setting in settings]
    check_decoders(configs[0], progress_of(folder).data)
    tokenizer = load_tokenizer(configs[0].data.tokenizer, configs[0].modality)
    prompts: dict[str, list[tuple[str, list[Any]]]] = {}  # by what the model sees of given pictures
    for config in configs:
        given = config.sampling.given
        prompts[given] = prompts.get(given) or read_prompts(args.parts, args.lines, tokenizer, config)
        check_prompts(prompts[given], tokenizer, config)
    model = load_weights(folder, configs[0])
    asked = [[prompt for _, prompt in prompts[config.sampling.given]] for config in configs]
    if args.axes:
        from oneflow_dist.commands.comparing import compare

        compare(model, asked, configs, settings, tokenizer, args)
    else:
        write_files(model, asked[0], configs[0], tokenizer, args)
    end_process()


def write_files(model: OneFlow, prompts: Sequence[Prompt], config: Config, tokenizer: Tokenizer, args: Any) -> None:
    """Write the documents, and the files of each."""
    from oneflow_dist.commands.writing import write

    folder, call = args.output, describe_call(config.sampling, args.seed)
    with naming(folder):
        if is_main():
            claim(folder, TRACE, {**call, "documents": []})
    steps_file, has_film = folder / STEPS if "jsonl" in args.format else None, "gif" in args.format
    written = write(model, prompts, config, tokenizer, args.seed, args.count, steps_file=steps_file, has_film=has_film)
    if not is_main():
        return
    canvases = [*written.documents.values()]
    with naming(folder):
        write_documents(folder, canvases, config.sampling, args.seed, tokenizer)
        if has_film:
            write_film(folder / FILM, written.film.frames(tokenizer))
    also = "".join(f", {what}" for name, what in FORMATS.items() if name in args.format)
    print(
        f"wrote {len(canvases)} documents to {folder}; all of them in documents.png, their history in trace.json{also}"
    )


def parse_arguments() -> argparse.Namespace:
    """The command line; numbers out of their ranges are refused here."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="The prompt is --text, --image, --piece, --vary, --paint and --hole in the order given; without any, it "
        'starts from nothing. A caption: --image FILE. An image: --text "a handwritten seven" --paint, or --text "a '
        'handwritten seven<|image|>". Both: --hole --paint. Under torchrun the ranks share the documents',
    )
    parser.add_argument("checkpoint", type=Path, help="run folder (its last checkpoint), or one checkpoint's folder")
    parser.add_argument("output", type=Path, help="folder for text, pictures and trace.json; those of a call before go")
    add_prompt(parser)
    parser.add_argument("--count", type=int, default=1, help="documents, of each prompt")
    parser.add_argument("--seed", type=int, default=0, help="with a document's number, of all that is random about it")
    parser.add_argument(
        "--format",
        action="append",
        default=[],
        metavar="NAME",
        help=f"write more: {'; '.join(f'{name}: {what}' for name, what in FORMATS.items())}; several, or a list with ,",
    )
    parser.add_argument(
        "--compare",
        action="append",
        default=[],
        metavar="KEY=V1,V2",
        help="instead, the same documents with each value of an option, as steps=10,40 or guidance.image=1,3, in "
        "compare.png; twice: with each pair",
    )
    add_sampling(parser)
    args = parser.parse_args()
    check_range("--count", args.count, "[1, inf)")
    check_sampling(args)
    args.format = read_formats(args.format)
    args.axes = read_axes(args)
    if args.format and args.axes:
        raise ValueError(f"--format: {', '.join(args.format)} is not written with --compare; leave one of them out")
    if args.prompts and args.parts:
        raise ValueError(f"--prompts: is given beside --{args.parts[0][0]}; write all of the prompt into its lines")
    args.lines = None if args.prompts is None else read_lines(args.prompts)
    return args


def add_prompt(parser: argparse.ArgumentParser) -> None:
    """The options that say what is given and what is to be made."""
    parser.set_defaults(parts=[])
    parser.add_argument(
        "--text",
        action=_Append,
        help='given text; in it a modality\'s token, as "<|image|>", is a piece to make, "<|hole|>" a hole',
    )
    parser.add_argument(
        "--image",
        action=_Append,
        type=Path,
        metavar="FILE",
        help="given image: PNG, JPEG or WebP; resized and cropped where patches do not fill it, or it is too large",
    )
    parser.add_argument(
        "--piece", action=_Append, metavar="NAME=FILE", help="given piece of a modality, as sound=seven.wav"
    )
    parser.add_argument(
        "--vary",
        action=_Append,
        metavar="TIME=FILE",
        help="an image to make anew from what this one looks like at a time between 0 (noise) and 1, as 0.6=photo.jpg",
    )
    parser.add_argument("--paint", action=_Append, nargs=0, help="an image to paint")
    parser.add_argument(
        "--hole",
        action=_Append,
        nargs=0,
        help="a place to write text in; without any, text is written at the end, unless that is an image to paint",
    )
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="instead of all these, a prompt in each line, written as --text"
    )


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """The options by which `with_arguments` changes what a checkpoint says of generation."""
    for name, kind in NUMBERS:
        parser.add_argument(option_of(name), type=kind, help=f"default: sampling.{name} of the checkpoint")
    for name, (_, value, example, what) in TABLES.items():
        parser.add_argument(
            option_of(name),
            action="append",
            default=[],
            metavar=f"NAME={value}",
            help=f"{what}, as {example}; default: the checkpoint's",
        )
    for name, choices in CHOICES.items():
        parser.add_argument(option_of(name), choices=choices, help=f"default: sampling.{name} of the checkpoint")
    parser.add_argument(
        "--codec",
        action="append",
        default=[],
        metavar="NAME=FOLDER",
        help="of a modality, between latents and files; default: the checkpoint's",
    )


def check_sampling(args: argparse.Namespace) -> None:
    """Refuse numbers, the seed's too, out of their ranges."""
    ranges = {"seed": RANGES["run"]["seed"], **RANGES["sampling"]}
    for name, interval in ranges.items():
        if getattr(args, name, None) is not None:
            check_range(option_of(name), getattr(args, name), interval)
    for name in TABLES:
        read_table(args, name)


def with_arguments(config: Config, args: argparse.Namespace) -> Config:
    """The config with what the command line says instead."""
    names = (*CHOICES, *dict(NUMBERS))
    changes = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    changes |= {name: {**getattr(config.sampling, name), **read_table(args, name)} for name in TABLES}
    modalities = dict(config.modality)
    for option in args.codec:
        name, _, codec = option.partition("=")
        if name not in modalities or not codec:
            raise ValueError(f"--codec: {option!r} is not NAME=FOLDER of a modality ({', '.join(modalities)})")
        modalities[name] = dataclasses.replace(modalities[name], codec=codec)
    sampling = dataclasses.replace(config.sampling, **changes)
    config = dataclasses.replace(config, sampling=sampling, modality=modalities)
    check_config(config)
    return config


def option_of(name: str) -> str:
    """As the command line spells it."""
    return f"--{name.replace('_', '-')}"


def read_table(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """The values of an option of TABLES by name."""
    kind, value, example, _ = TABLES[name]
    found = {}
    for option in getattr(args, name):
        key, _, text = option.partition("=")
        try:
            found[key] = kind(text)
        except ValueError:
            raise ValueError(f"{option_of(name)}: {option!r} is not NAME={value}, as {example}") from None
    return found


def read_formats(options: list[str]) -> list[str]:
    """The names of all --format, each of them one or several."""
    names = [name.strip() for option in options for name in option.split(",")]
    for name in names:
        if name not in FORMATS:
            raise ValueError(f"--format: {name!r} is not one of {', '.join(FORMATS)}")
    return names


def read_axes(args: argparse.Namespace) -> dict[str, list[Any]]:
    """The keys of --compare with their values.

    Raises:
        ValueError: no such key, one that has a value already, more than two, or a value that it cannot have.
    """
    axes: dict[str, list[Any]] = {}
    given = {name for name in (*dict(NUMBERS), *CHOICES) if getattr(args, name) is not None}
    given |= {f"{name}.{key}" for name in TABLES for key in read_table(args, name)}
    for option in args.compare:
        key, _, values = option.partition("=")
        if key in given or key in axes:
            raise ValueError(f"--compare: {key} has been given already; leave one of them out")
        axes[key] = [read_value(key, text.strip()) for text in values.split(",")]
    if len(axes) > 2:
        raise ValueError(
            f"--compare: a page has rows and columns, but {', '.join(axes)} are {len(axes)} keys; take two"
        )
    return axes


def read_value(key: str, text: str) -> Any:
    """A value of a key of --compare."""
    if key in CHOICES:
        if text not in CHOICES[key]:
            raise ValueError(f"--compare: {key} is one of {', '.join(CHOICES[key])}, not {text!r}")
        return text
    kind = _kind_of(key)
    try:
        value = kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise ValueError(f"--compare: {key} takes {what}, not {text!r}; write several as {key}=1,2") from None
    if key in RANGES["sampling"]:
        check_range(f"--compare {key}", value, RANGES["sampling"][key])
    return value


def _kind_of(key: str) -> type:
    """Of the numbers that a key of --compare takes."""
    name, _, of_what = key.partition(".")
    if name in TABLES and of_what:
        return TABLES[name][0]
    kinds = dict(NUMBERS)
    if key in kinds:
        return kinds[key]
    known = [*kinds, *CHOICES, *(f"{table}.NAME" for table in TABLES)]
    near = [f"{name}.NAME"] if name in TABLES else difflib.get_close_matches(key, known, n=1)
    advice = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
    raise ValueError(f"--compare: {key!r} is no key; {advice}")


def settings_of(axes: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Each combination of values, those of the first key outermost; without keys the one that changes nothing."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def with_setting(args: argparse.Namespace, setting: dict[str, Any]) -> argparse.Namespace:
    """The command line as if it had these values."""
    changed = dict(vars(args))
    for key, value in setting.items():
        name, _, of_what = key.partition(".")
        changed[name] = [*changed[name], f"{of_what}={value}"] if of_what else value
    return argparse.Namespace(**changed)


if __name__ == "__main__":
    run_program(main)
