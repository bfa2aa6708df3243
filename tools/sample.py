"""Generate documents from a checkpoint: text, images, and a trace of which token and image appeared when."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from oneflow_dist.canvas import Canvas, blank_canvas
from oneflow_dist.checkpoint import load_model
from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import Tokenizer, load_tokenizer
from oneflow_dist.pictures import decode_pictures, draw_document, encode_picture, stack, with_margin
from oneflow_dist.runtime import run_program, share_cores
from oneflow_dist.sampler import SamplerSettings, generate_steps


class _Append(argparse.Action):
    """Collects --text, --image, --paint and --hole into one list, in the order in which they were given."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        namespace.parts = [*namespace.parts, (self.dest, values)]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="The prompt is --text, --image, --paint and --hole in the order given; without any, it starts from "
        'nothing. A caption: --image FILE. An image: --text "a handwritten seven" --paint. Both: --hole --paint',
    )
    parser.set_defaults(parts=[])
    parser.add_argument("checkpoint", type=Path, help="run folder (its last checkpoint), or one checkpoint's folder")
    parser.add_argument("output", type=Path, help="folder for text, pictures and trace.json")
    parser.add_argument("--text", action=_Append, help="given text")
    parser.add_argument("--image", action=_Append, type=Path, metavar="FILE", help="given image")
    parser.add_argument("--paint", action=_Append, nargs=0, help="an image to paint")
    parser.add_argument(
        "--hole",
        action=_Append,
        nargs=0,
        help="a place to write text in; without any, text is written at the end, unless that is an image to paint",
    )
    parser.add_argument("--count", type=int, default=1, help="documents")
    parser.add_argument("--seed", type=int, default=0)
    for name, kind in (
        ("steps", int),
        ("time_power", float),
        ("guidance", float),
        ("temperature", float),
        ("top_k", int),
        ("top_p", float),
        ("max_rows", int),
    ):
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind, help=f"default: sampling.{name} of the checkpoint"
        )
    parser.add_argument(
        "--thinning", action=argparse.BooleanOptionalAction, help="default: sampling.thinning of the checkpoint"
    )
    args = parser.parse_args()
    if args.count < 1:
        raise ValueError(f"--count: {args.count} must be positive")

    share_cores(others=1)  # with whatever else runs here
    model, config = load_model(args.checkpoint)
    tokenizer = load_tokenizer(config.data.tokenizer)
    settings = SamplerSettings.from_config(config.sampling)
    names = [field.name for field in dataclasses.fields(SamplerSettings)]
    settings = dataclasses.replace(settings, **{n: v for n, v in vars(args).items() if n in names and v is not None})
    prompt = read_prompt(args.parts, tokenizer, config)
    canvases = [blank_canvas(prompt, tokenizer, config.image, args.seed, index) for index in range(args.count)]
    with tqdm(total=settings.steps, unit="step", desc="generating") as bar:
        for step in generate_steps(model, canvases, settings, config, tokenizer):
            bar.total = max(bar.total, step)
            bar.update()
    write_documents(args.output, canvases, settings, args.seed, tokenizer, config.sampling.autoencoder)


def read_prompt(parts: Sequence[tuple[str, Any]], tokenizer: Tokenizer, config: Config) -> list[Any]:
    """Token ids, latents, images to paint (None) and holes (`...`), in order."""
    prompt: list[Any] = []
    for kind, value in parts:
        if kind == "text":
            prompt += tokenizer.encode(value)
        elif kind in ("paint", "hole"):
            prompt.append(None if kind == "paint" else ...)
        else:
            if not value.is_file():
                raise ValueError(f"--image: no such file {value}")
            prompt.append(encode_picture(value.read_bytes(), config, str(value)))
    return prompt


def write_documents(
    folder: Path,
    canvases: list[Canvas],
    settings: SamplerSettings,
    seed: int,
    tokenizer: Tokenizer,
    autoencoder: str,
) -> None:
    """Text and PNGs of each document, all of them in one picture, and the trace."""
    folder.mkdir(parents=True, exist_ok=True)
    documents = []
    for index, canvas in enumerate(canvases):
        pieces, pictures = [], decode_pictures(canvas.latents(), autoencoder)
        for part in canvas.parts(tokenizer):
            if isinstance(part, int):
                name = f"{index:04d}-{part}.png"
                pictures[part].save(folder / name)
                part = f"[{name}]"
            pieces.append(part)
        (folder / f"{index:04d}.txt").write_text(" ".join(pieces) + "\n")
        documents.append(trace(canvas, index, tokenizer))
        print(" ".join(pieces) + (" (stopped at max_rows)" if canvas.hit_cap else ""))
    report = {"seed": seed, "settings": dataclasses.asdict(settings), "documents": documents}
    (folder / "trace.json").write_text(json.dumps(report, indent=2) + "\n")
    page = stack([draw_document(canvas, tokenizer, autoencoder) for canvas in canvases], gap=16)
    with_margin(page, 24).save(folder / "documents.png")
    print(f"wrote {len(canvases)} documents to {folder}; all of them in documents.png, their history in trace.json")


def trace(canvas: Canvas, index: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """Every token of a document with the step at which it appeared (0: it was given), images with their last step."""
    entries: list[dict[str, Any]] = []
    image_of = {int(place): number for number, place in enumerate(canvas.image_at)}
    for place, (token, born) in enumerate(zip(canvas.tokens.tolist(), canvas.born.tolist(), strict=True)):
        entry = {"token": token, "text": tokenizer.decode([token]), "step": born}
        if place in image_of:
            number = image_of[place]
            entry |= {"image": f"{index:04d}-{number}.png", "last_step": int(canvas.image_end[number])}
        entries.append(entry)
    return {"index": index, "hit_cap": canvas.hit_cap, "tokens": entries}


if __name__ == "__main__":
    run_program(main)
