"""Measure what a model of digits with sounds writes, and draw it: report.json and documents.png in the run folder."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oneflow_dist.files import naming
from oneflow_dist.runtime import run_program, share_cores
from oneflow_dist.toml import check_range

if TYPE_CHECKING:
    from oneflow_dist.canvas import Canvas
    from tools.digits.judging import Writer

SEED = 6
SHOWN = 12  # documents in the picture
KINDS = ("image", "sound", "video")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="run folder with a checkpoint, as runs/sounds")
    parser.add_argument("--samples", type=int, default=200, help="documents of each kind (%(default)s)")
    args = parser.parse_args()
    check_range("--samples", args.samples, "[1, inf)")
    # Only now, since it takes seconds: what is wrong on the command line has been answered by then.
    from oneflow_dist.data.tokenizer import load_tokenizer
    from oneflow_dist.pictures import draw_page
    from oneflow_dist.trained import load_model
    from tools.digits.judging import Writer, read_metrics

    share_cores(others=1)  # with whatever else runs here
    model, config = load_model(args.folder)
    if missing := [kind for kind in KINDS if kind not in config.modality]:
        raise ValueError(f"{args.folder}: its model has no {missing[0]}; name a run of configs/sounds.toml")
    writer = Writer(model, config, load_tokenizer(config.data.tokenizer, config.modality))
    together = writer.write("together", [[]] * args.samples, SEED)
    report = {
        **read_metrics(args.folder / "metrics.jsonl"),
        "samples": args.samples,
        "together": judge_documents(together, writer),
        "given the word": judge_made(writer, args.samples),
        "to the word": judge_named(writer, args.samples),
    }
    with naming(args.folder):
        (args.folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        draw_page(together[:SHOWN], writer.tokenizer).save(args.folder / "documents.png")
    print(json.dumps(report, indent=2))
    print(f"wrote {args.folder / 'report.json'} and {args.folder / 'documents.png'}")
    print(f"next: oneflow sample {args.folder} out --text ' seven<|sound|>', and listen to out/0000-sound-0.wav")


def readers() -> dict[str, Callable[[Sequence[np.ndarray]], np.ndarray]]:
    """What finds the digit in the pieces of each modality: classifiers that have learned from training data alone."""
    from tools.digits.grammar import read_images
    from tools.sounds.judging import read_sounds, read_videos

    return {"image": read_images, "sound": read_sounds, "video": read_videos}


def judge_documents(canvases: Sequence[Canvas], writer: Writer) -> dict[str, float]:
    """How documents written from nothing are, as shares of them.

    whole: one word of a digit, one picture, one sound and one video, in any order. image, sound, video: such a piece
    stands there once and shows the digit of the word. all: whole, and all pieces show it.
    """
    from tools.digits.grammar import WORDS
    from tools.digits.judging import mean, text_of

    shows: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    whole, every, orders = [], [], set()
    for canvas in canvases:
        word = text_of(canvas, writer.tokenizer)
        digit = WORDS.index(word) if word in WORDS else -1
        for kind, read in readers().items():
            found = read(canvas.latents(kind))
            shows[kind].append(len(found) == 1 and int(found[0]) == digit)
        whole.append(digit >= 0 and all(len(canvas.latents(kind)) == 1 for kind in KINDS))
        every.append(whole[-1] and all(shows[kind][-1] for kind in KINDS))
        orders.add(tuple(p[0] if isinstance(p, tuple) else "text" for p in canvas.parts(writer.tokenizer)))
    return {
        "whole": mean(whole),
        **{kind: mean(agrees) for kind, agrees in shows.items()},
        "all": mean(every),
        "orders": float(len(orders)),
    }


def judge_made(writer: Writer, number: int) -> dict[str, float]:
    """Given a word: the shares of the pictures, sounds and videos made of it that show its digit."""
    from tools.digits.grammar import WORDS
    from tools.digits.judging import mean

    digits = np.arange(number) % len(WORDS)
    found = {}
    for kind, read in readers().items():
        prompts: list[Any] = [[*writer.tokenizer.encode(f" {WORDS[digit]}"), (kind, None)] for digit in digits]
        made = [canvas.latents(kind)[0] for canvas in writer.write(f"to {kind}", prompts, SEED)]
        found[kind] = mean(read(made) == digits)
    return found


def judge_named(writer: Writer, number: int) -> dict[str, float]:
    """Given a picture, sound or video that is not of the training data: the shares that get the right word."""
    from oneflow_dist.data.codec import pixels_to_latent
    from tools.digits.grammar import WORDS, load_split
    from tools.digits.judging import mean, text_of
    from tools.sounds.judging import say
    from tools.sounds.variations import DIRECTIONS, STEPS, scroll

    images, labels = load_split("heldout")
    chosen = np.arange(number) % len(images)
    pictures, digits = [pixels_to_latent(images[index]) for index in chosen], labels[chosen]
    given = {
        "image": pictures,
        "sound": [say(int(digit), np.random.default_rng([2, index])) for index, digit in enumerate(digits)],
        "video": [
            scroll(np.repeat(picture[:, None], STEPS, axis=1), DIRECTIONS[index % len(DIRECTIONS)])
            for index, picture in enumerate(pictures)
        ],
    }
    found = {}
    for kind, latents in given.items():
        prompts: list[Any] = [[(kind, latent.astype(np.float32))] for latent in latents]
        words = [text_of(canvas, writer.tokenizer) for canvas in writer.write(f"from {kind}", prompts, SEED)]
        found[kind] = mean([word == WORDS[digit] for word, digit in zip(words, digits, strict=True)])
    return found


if __name__ == "__main__":
    run_program(main)
