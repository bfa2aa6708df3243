"""Generate documents from a checkpoint: text, pieces, and a trace of which token and piece appeared when."""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from oneflow_dist.config import RANGES, check_config
from oneflow_dist.files import naming
from oneflow_dist.modality import GIVEN
from oneflow_dist.runtime import bar_seconds, run_program, share_cores
from oneflow_dist.sampling import Firing, SamplingConfig, Solver, WeakModel
from oneflow_dist.toml import check_range

if TYPE_CHECKING:
    from collections.abc import Iterator

    from oneflow_dist.canvas import Canvas
    from oneflow_dist.config import Config
    from oneflow_dist.data.tokenizer import Tokenizer
    from oneflow_dist.making import Making
    from oneflow_dist.modality import ModalityConfig

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
)
CHOICES = {"firing": get_args(Firing), "solver": get_args(Solver), "weak_model": get_args(WeakModel), "given": GIVEN}
OWN_FILE = re.compile(r"\d{4,}(-[a-z0-9_]+-\d+\.(png|gif|wav|npy)|\.txt)")


class _Append(argparse.Action):
    """Collects --text, --image, --piece, --paint and --hole into one list, in the order in which they were given."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.parts = [*namespace.parts, (self.dest, values)]


def main() -> None:
    """Entry point."""
    args = parse_arguments()
    print(f"loading {args.checkpoint}", flush=True)
    # Only now, since it takes seconds: what is wrong on the command line has been answered by then.
    from oneflow_dist.canvas import blank_canvas
    from oneflow_dist.data.tokenizer import load_tokenizer
    from oneflow_dist.pictures import check_decoders
    from oneflow_dist.progress import read_progress
    from oneflow_dist.trained import config_at_home, find_checkpoint, load_weights
    from tools.prompts import read_prompt

    share_cores(others=1)  # with whatever else runs here
    folder = find_checkpoint(args.checkpoint)
    config = with_arguments(config_at_home(folder), args)
    check_decoders(config, read_progress(folder).data)
    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    prompt = read_prompt(args.parts, tokenizer, config)
    canvases = [blank_canvas(prompt, tokenizer, config.modality, args.seed, index) for index in range(args.count)]
    max_rows = config.sampling.max_rows
    if canvases[0].num_rows > max_rows:
        raise ValueError(
            f"--max-rows: {max_rows}, but the prompt alone takes {canvases[0].num_rows} rows; raise it, or "
            "shorten the prompt"
        )
    write(load_weights(folder, config), canvases, config, tokenizer)
    with naming(args.output):
        write_documents(args.output, canvases, config.sampling, args.seed, tokenizer)


def parse_arguments() -> argparse.Namespace:
    """The command line; numbers out of their ranges are refused here."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="The prompt is --text, --image, --paint and --hole in the order given; without any, it starts from "
        'nothing. A caption: --image FILE. An image: --text "a handwritten seven" --paint, or --text "a handwritten '
        'seven<|image|>". Both: --hole --paint',
    )
    parser.set_defaults(parts=[])
    parser.add_argument("checkpoint", type=Path, help="run folder (its last checkpoint), or one checkpoint's folder")
    parser.add_argument("output", type=Path, help="folder for text, pictures and trace.json; those of a call before go")
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
    parser.add_argument("--paint", action=_Append, nargs=0, help="an image to paint")
    parser.add_argument(
        "--hole",
        action=_Append,
        nargs=0,
        help="a place to write text in; without any, text is written at the end, unless that is an image to paint",
    )
    parser.add_argument("--count", type=int, default=1, help="documents")
    parser.add_argument("--seed", type=int, default=0)
    add_sampling(parser)
    args = parser.parse_args()
    check_range("--count", args.count, "[1, inf)")
    check_sampling(args)
    return args


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """The options by which `with_arguments` changes what a checkpoint says of generation."""
    for name, kind in NUMBERS:
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind, help=f"default: sampling.{name} of the checkpoint"
        )
    parser.add_argument(
        "--guidance",
        action="append",
        default=[],
        metavar="NAME=WEIGHT",
        help="of a modality's velocity, as image=3, or of the text: gate, rate and tokens; default: the checkpoint's",
    )
    for name, choices in CHOICES.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", choices=choices, help=f"default: sampling.{name} of the checkpoint"
        )
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
            check_range(f"--{name.replace('_', '-')}", getattr(args, name), interval)
    read_weights(args.guidance)


def with_arguments(config: Config, args: argparse.Namespace) -> Config:
    """The config with what the command line says instead."""
    names = (*CHOICES, *dict(NUMBERS))
    changes = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    changes["guidance"] = {**config.sampling.guidance, **read_weights(args.guidance)}
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


def read_weights(options: list[str]) -> dict[str, float]:
    """The values of --guidance by name."""
    found = {}
    for option in options:
        name, _, weight = option.partition("=")
        try:
            found[name] = float(weight)
        except ValueError:
            raise ValueError(f"--guidance: {option!r} is not NAME=WEIGHT, as image=3") from None
    return found


def write(model: Any, canvases: list[Canvas], config: Config, tokenizer: Tokenizer) -> None:
    """Finish the canvases, with a bar that ends full: its total is the most that can be left, which only shrinks."""
    from tqdm import tqdm

    from oneflow_dist.sampler import generate_steps

    def most_left() -> int:
        return max(canvas.steps_left(config.sampling) for canvas in canvases)

    with tqdm(total=most_left(), unit="step", desc="generating", mininterval=bar_seconds()) as bar:
        for step in generate_steps(model, canvases, config, tokenizer):
            bar.total = step.number + most_left()
            there, expected = sum(len(c.tokens) for c in canvases), sum(c.expected_length for c in canvases)
            bar.set_postfix_str(f"{there} of about {expected:.0f} tokens", refresh=False)
            bar.update()


def write_documents(
    folder: Path,
    canvases: list[Canvas],
    sampling: SamplingConfig,
    seed: int,
    tokenizer: Tokenizer,
) -> None:
    """Text and pieces of each document, a picture of all of them, and the trace; those of a call before are removed."""
    from oneflow_dist.pictures import draw_page

    folder.mkdir(parents=True, exist_ok=True)
    remove_old(folder)
    documents = [trace(canvas, index, tokenizer) for index, canvas in enumerate(canvases)]
    report = {"seed": seed, "settings": dataclasses.asdict(sampling), "documents": documents}
    (folder / "trace.json").write_text(json.dumps(report, indent=2) + "\n")  # first: it tells whose files these are
    for index, canvas in enumerate(canvases):
        for kind, making in canvas.making.items():
            for number, content in enumerate(encode_files(making)):
                (folder / file_name(index, kind, number, making.modality)).write_bytes(content)
        text = " ".join(
            part if isinstance(part, str) else f"[{file_name(index, *part, canvas.making[part[0]].modality)}]"
            for part in canvas.parts(tokenizer)
        )
        (folder / f"{index:04d}.txt").write_text(text + "\n", encoding="utf-8")
        print(text + (" (stopped at max_rows)" if canvas.hit_cap else ""))
    draw_page(canvases, tokenizer).save(folder / "documents.png")
    print(f"wrote {len(canvases)} documents to {folder}; all of them in documents.png, their history in trace.json")


def encode_files(making: Making) -> Iterator[bytes]:
    """The content of a file of each piece: of pictures as their codec decodes them."""
    from oneflow_dist.data.media import decode_file
    from oneflow_dist.pictures import draw_pieces

    if making.modality.dimensions != 2:
        yield from (decode_file(latent, making.modality) for latent in making.latents())
        return
    for picture in draw_pieces(making.latents(), making.modality):
        file = io.BytesIO()
        picture.save(file, "PNG")
        yield file.getvalue()


def file_name(index: int, kind: str, number: int, modality: ModalityConfig) -> str:
    """Of a piece: pictures are PNG, what moves is GIF, sounds are WAV, and what has no file is an array."""
    extension = {2: "png", 3: "gif"}.get(modality.dimensions, "wav" if modality.has_sound else "npy")
    return f"{index:04d}-{kind}-{number}.{extension}"


def remove_old(folder: Path) -> None:
    """The files of an earlier call go, also those of a longer one; without its trace.json they are not ours."""
    if (folder / "trace.json").exists():
        for path in folder.iterdir():
            if OWN_FILE.fullmatch(path.name):
                path.unlink()
        (folder / "documents.png").unlink(missing_ok=True)


def trace(canvas: Canvas, index: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """Every token of a document with the step at which it appeared (0: it was given), pieces with their last step."""
    entries: list[dict[str, Any]] = []
    piece_at = canvas.piece_at
    for row, (token, born) in enumerate(zip(canvas.tokens.tolist(), canvas.born.tolist(), strict=True)):
        entry = {"token": token, "text": tokenizer.decode([token]), "step": born}
        if row in piece_at:
            kind, number = piece_at[row]
            making = canvas.making[kind]
            entry |= {kind: file_name(index, kind, number, making.modality), "last_step": int(making.end[number])}
        entries.append(entry)
    lengths = [{"tokens": there, "expected": round(expected, 3)} for there, expected in canvas.lengths]
    return {"index": index, "hit_cap": canvas.hit_cap, "lengths": lengths, "tokens": entries}


if __name__ == "__main__":
    run_program(main)
