"""Generate documents from a checkpoint: text, images, and a trace of which token and image appeared when."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oneflow_dist.config import RANGES
from oneflow_dist.files import naming
from oneflow_dist.runtime import bar_seconds, run_program, share_cores
from oneflow_dist.toml import check_range

if TYPE_CHECKING:
    from oneflow_dist.canvas import Canvas
    from oneflow_dist.config import Config, SamplingConfig
    from oneflow_dist.data.tokenizer import Tokenizer

NUMBERS = (
    ("steps", int),
    ("time_power", float),
    ("guidance", float),
    ("temperature", float),
    ("top_k", int),
    ("top_p", float),
    ("max_rows", int),
)
OWN_FILE = re.compile(r"\d{4,}(-\d+\.png|\.txt)")


class _Append(argparse.Action):
    """Collects --text, --image, --paint and --hole into one list, in the order in which they were given."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.parts = [*namespace.parts, (self.dest, values)]


def main() -> None:
    """Entry point."""
    args = parse_arguments()
    print(f"loading {args.checkpoint}", flush=True)
    # Only now, since it takes seconds: what is wrong on the command line has been answered by then.
    from oneflow_dist.canvas import blank_canvas
    from oneflow_dist.data.identity import check_decoder
    from oneflow_dist.data.tokenizer import load_tokenizer
    from oneflow_dist.model.autoencoder import PIXELS
    from oneflow_dist.pictures import decoder_of
    from oneflow_dist.progress import read_progress
    from oneflow_dist.trained import config_at_home, find_checkpoint, load_weights
    from tools.prompts import read_prompt

    share_cores(others=1)  # with whatever else runs here
    folder = find_checkpoint(args.checkpoint)
    config = with_arguments(config_at_home(folder), args)
    if config.sampling.autoencoder != PIXELS:  # which show something of any latents
        decoder = decoder_of(config.sampling.autoencoder, config.image.channels)
        check_decoder(read_progress(folder).data, config.sampling.autoencoder, decoder.describe())
    tokenizer = load_tokenizer(config.data.tokenizer)
    prompt = read_prompt(args.parts, tokenizer, config)
    canvases = [blank_canvas(prompt, tokenizer, config.image, args.seed, index) for index in range(args.count)]
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
        "--text", action=_Append, help='given text; in it "<|image|>" is an image to paint, "<|hole|>" a hole'
    )
    parser.add_argument(
        "--image",
        action=_Append,
        type=Path,
        metavar="FILE",
        help="given image: PNG, JPEG or WebP; resized and cropped where patches do not fill it, or it is too large",
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
    for name, kind in NUMBERS:
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind, help=f"default: sampling.{name} of the checkpoint"
        )
    parser.add_argument(
        "--thinning", action=argparse.BooleanOptionalAction, help="default: sampling.thinning of the checkpoint"
    )
    parser.add_argument(
        "--autoencoder",
        metavar="FOLDER",
        help="from latents to pixels; default: sampling.autoencoder of the checkpoint",
    )
    args = parser.parse_args()
    ranges = {**RANGES["sampling"], "seed": RANGES["run"]["seed"], "count": "[1, inf)"}
    for name in ("count", "seed", *dict(NUMBERS)):
        if getattr(args, name) is not None:
            check_range(f"--{name.replace('_', '-')}", getattr(args, name), ranges[name])
    return args


def with_arguments(config: Config, args: argparse.Namespace) -> Config:
    """The config with what the command line says instead."""
    names = ("thinning", "autoencoder", *dict(NUMBERS))
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, **given))


def write(model: Any, canvases: list[Canvas], config: Config, tokenizer: Tokenizer) -> None:
    """Finish the canvases, with a bar that ends full: its total is the most that can be left, which only shrinks."""
    from tqdm import tqdm

    from oneflow_dist.sampler import generate_steps

    def most_left(step: int) -> int:
        return max(steps_left(canvas, config.sampling.steps, step) for canvas in canvases)

    with tqdm(total=most_left(0), unit="step", desc="generating", mininterval=bar_seconds()) as bar:
        for step in generate_steps(model, canvases, config, tokenizer):
            bar.total = step + most_left(step)
            bar.update()


def steps_left(canvas: Canvas, num_steps: int, step: int) -> int:
    """At most: the text ends after `num_steps`, and an image that appears in the last of them takes as many again."""
    if canvas.is_writing:
        return 2 * num_steps - step
    rest = 1.0 - canvas.images.time[canvas.is_moving]
    return math.ceil(rest.max(initial=0.0) * num_steps - 1e-6)  # clocks are sums of 1/N


def write_documents(
    folder: Path,
    canvases: list[Canvas],
    sampling: SamplingConfig,
    seed: int,
    tokenizer: Tokenizer,
) -> None:
    """Text and PNGs of each document, all of them in one picture, and the trace; those of a call before are removed."""
    from oneflow_dist.pictures import decode_pictures, draw_page

    folder.mkdir(parents=True, exist_ok=True)
    remove_old(folder)
    documents = [trace(canvas, index, tokenizer) for index, canvas in enumerate(canvases)]
    report = {"seed": seed, "settings": dataclasses.asdict(sampling), "documents": documents}
    (folder / "trace.json").write_text(json.dumps(report, indent=2) + "\n")  # first: it tells whose files these are
    for index, canvas in enumerate(canvases):
        pieces, pictures = [], decode_pictures(canvas.latents(), sampling.autoencoder)
        for part in canvas.parts(tokenizer):
            if isinstance(part, int):
                name = f"{index:04d}-{part}.png"
                pictures[part].save(folder / name)
                part = f"[{name}]"
            pieces.append(part)
        (folder / f"{index:04d}.txt").write_text(" ".join(pieces) + "\n", encoding="utf-8")
        print(" ".join(pieces) + (" (stopped at max_rows)" if canvas.hit_cap else ""))
    draw_page(canvases, tokenizer, sampling.autoencoder).save(folder / "documents.png")
    print(f"wrote {len(canvases)} documents to {folder}; all of them in documents.png, their history in trace.json")


def remove_old(folder: Path) -> None:
    """The files of an earlier call go, also those of a longer one; without its trace.json they are not ours."""
    if (folder / "trace.json").exists():
        for path in folder.iterdir():
            if OWN_FILE.fullmatch(path.name):
                path.unlink()
        (folder / "documents.png").unlink(missing_ok=True)


def trace(canvas: Canvas, index: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """Every token of a document with the step at which it appeared (0: it was given), images with their last step."""
    entries: list[dict[str, Any]] = []
    image_of = {int(row): number for number, row in enumerate(canvas.images.token)}
    for row, (token, born) in enumerate(zip(canvas.tokens.tolist(), canvas.born.tolist(), strict=True)):
        entry = {"token": token, "text": tokenizer.decode([token]), "step": born}
        if row in image_of:
            number = image_of[row]
            entry |= {"image": f"{index:04d}-{number}.png", "last_step": int(canvas.image_end[number])}
        entries.append(entry)
    return {"index": index, "hit_cap": canvas.hit_cap, "tokens": entries}


if __name__ == "__main__":
    run_program(main)
