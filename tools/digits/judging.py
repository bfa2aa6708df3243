"""What a model of digits writes, judged and drawn."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from oneflow_dist.canvas import Canvas, Prompt, blank_canvas, parse_prompt
from oneflow_dist.commands.sample import with_arguments
from oneflow_dist.config import Config
from oneflow_dist.data.codec import pixels_to_latent
from oneflow_dist.data.tokenizer import Tokenizer, load_tokenizer
from oneflow_dist.evaluation.metrics.distances import measure_frechet
from oneflow_dist.files import naming
from oneflow_dist.model.flops import num_parameters
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.runtime import share_cores
from oneflow_dist.sampler import generate, generate_steps
from oneflow_dist.trained import load_model
from tools.digits.gallery import draw_gallery
from tools.digits.grammar import (
    CAPTIONS,
    COUNT_PROMPT,
    MAX_COUNT,
    WORDS,
    load_split,
    read_caption,
    read_count,
    read_images,
)

NEXT = """next, after `source .venv/bin/activate`:
  oneflow serve {folder}
  oneflow sample {folder} out --text "a handwritten seven" --paint --count 4
  oneflow sample {folder} out --image data/digits/seven.png
  oneflow train configs/quickstart.toml run.folder=runs/mine optim.lr=1e-3"""
SEEDS = {"single": 1, "interleaved": 2, "text_to_image": 3, "image_to_text": 4, "both": 5}


@dataclasses.dataclass(frozen=True, slots=True)
class Writer:
    """A model and how it is asked to generate."""

    model: OneFlow
    config: Config
    tokenizer: Tokenizer

    def write(self, name: str, prompts: Sequence[Prompt], seed: int) -> list[Canvas]:
        """A finished document for each prompt; prints how long it took."""
        start = time.perf_counter()
        canvases = [
            blank_canvas(prompt, self.tokenizer, self.config.modality, seed, index)
            for index, prompt in enumerate(prompts)
        ]
        generate(self.model, canvases, self.config, self.tokenizer)
        full = sum(canvas.hit_cap for canvas in canvases)
        note = f", {full} reached sampling.max_rows" if full else ""
        print(f"{name:<14} {len(canvases)} documents in {time.perf_counter() - start:.1f} s{note}", flush=True)
        return canvases


def evaluate(args: argparse.Namespace) -> None:
    """Write, judge and draw documents of each kind, as the command line of evaluate.py says."""
    folder, num_samples = args.folder, args.samples
    share_cores(others=1)  # with whatever else runs here
    model, config = load_model(folder)
    history, tokenizer = read_metrics(folder / "metrics.jsonl"), load_tokenizer(config.data.tokenizer, config.modality)
    check_digits(folder, config, tokenizer)
    print(f"{folder}: writing and judging {num_samples} documents of each of five kinds", flush=True)
    writer = Writer(model, with_arguments(config, args), tokenizer)

    single = writer.write("single", [[]] * num_samples, SEEDS["single"])
    hole, count = (parse_prompt(prompt, writer.tokenizer) for prompt in ("<|hole|><|image|>", COUNT_PROMPT))
    if config.objective.looks_back:  # who writes from left to right says by itself that an image follows
        hole = []
    both = writer.write("both", [hole] * num_samples, SEEDS["both"])
    interleaved = writer.write("interleaved", [count] * num_samples, SEEDS["interleaved"])
    report = {
        **history,
        "num_parameters": num_parameters(model),
        "num_samples": num_samples,
        "sampling": dataclasses.asdict(writer.config.sampling),
        "single": judge_single(single, writer.tokenizer),
        "both": judge_single(both, writer.tokenizer),
        "interleaved": judge_interleaved(interleaved, writer.tokenizer),
        "prompted": judge_prompted(writer, num_samples),
    }
    states = rewrite(writer, interleaved)
    with naming(folder):
        (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")
        draw_gallery(folder / "gallery.png", single, both, interleaved, writer.tokenizer, states)
    print(json.dumps(report, indent=2))
    print(f"wrote {folder / 'report.json'} and {folder / 'gallery.png'}")
    print(NEXT.format(folder=folder))


def check_digits(folder: Path, config: Config, tokenizer: Tokenizer) -> None:
    """Refuse a model of something else: what it writes would be judged by another grammar and another eye.

    Raises:
        ValueError: its images are not those of digits, or its vocabulary has learned other words.
    """
    found = {name: (modality.channels, *modality.shape) for name, modality in config.modality.items()}
    if found.get("image") != (1, 8, 8):
        raise ValueError(
            f"{folder}: its pieces are {found or 'none'}, but digits are images of 1x8x8; oneflow sample shows "
            "what other models write"
        )
    words = [f" {word}" for word in WORDS]
    if config.data.tokenizer != "bytes" and any(len(tokenizer.encode(word)) > 1 for word in words):
        raise ValueError(
            f"{folder}: {config.data.tokenizer} is not the vocabulary of digits, which has a token for each of "
            f"{', '.join(WORDS)}; oneflow sample shows what other models write"
        )


def read_metrics(path: Path) -> dict[str, Any]:
    """Length of the training in steps and in seconds of its steps."""
    if not path.is_file():
        raise ValueError(f"{path.parent}: no metrics.jsonl here; name the folder of a run, not of one checkpoint")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [line for line in lines if "seconds" in line]  # of steps; others are of held-out losses
    return {
        "steps": lines[-1]["step"],
        "train_seconds": round(sum(line["seconds"] for line in lines), 1),
        "padding": float(np.mean([line["padding"] for line in lines])),
    }


def judge_single(canvases: list[Canvas], tokenizer: Tokenizer) -> dict[str, float]:
    """Shares of documents: the text is a sentence of the grammar; it has one image; that shows the text's digit."""
    valid, has_image, agrees = [], [], []
    for canvas in canvases:
        texts = [part for part in canvas.parts(tokenizer) if isinstance(part, str)]
        digit = read_caption(texts[0]) if len(texts) == 1 else None
        valid.append(digit is not None)
        seen = read_images(canvas.latents("image"))
        has_image.append(len(seen) == 1)
        agrees.append(len(seen) == 1 and digit == seen[0])
    return {"valid_text": mean(valid), "has_image": mean(has_image), "agreement": mean(agrees)}


def judge_interleaved(
    canvases: list[Canvas], tokenizer: Tokenizer, prompt: str = COUNT_PROMPT, longest: int = MAX_COUNT
) -> dict[str, float]:
    """How counting documents are.

    valid_text, has_image and documents_right are shares of documents: the words count up; every word is followed by one
    image; both, and all images show their word. agreement is the share of images that show the word before them.
    """
    valid, has_image, right, agrees = [], [], [], []
    for canvas in canvases:
        parts = count_parts(canvas, tokenizer, prompt)
        words = [part for part in parts if isinstance(part, str)]
        is_text = [isinstance(part, str) for part in parts]
        before = [previous for previous, part in zip(["", *parts], parts, strict=False) if isinstance(part, tuple)]
        seen = read_images(canvas.latents("image"))
        shows = [word in WORDS and WORDS.index(word) == digit for word, digit in zip(before, seen, strict=True)]
        valid.append(read_count(words, longest) is not None)
        has_image.append(is_text == [True, False] * len(words))
        right.append(valid[-1] and has_image[-1] and all(shows))
        agrees += shows
    return {
        "valid_text": mean(valid),
        "has_image": mean(has_image),
        "agreement": mean(agrees),
        "documents_right": mean(right),
    }


def judge_prompted(writer: Writer, num_samples: int) -> dict[str, float]:
    """Given the caption, the image, and how far images are from held-out ones; given a held-out image, the caption."""
    digits = np.arange(num_samples) % 10
    captions = [CAPTIONS[index // 10 % len(CAPTIONS)].format(WORDS[digit]) for index, digit in enumerate(digits)]
    prompts = [parse_prompt(f"{caption}<|image|>", writer.tokenizer) for caption in captions]
    painted = writer.write("text_to_image", prompts, SEEDS["text_to_image"])
    images, _ = load_split("heldout")
    latents = [pixels_to_latent(images[index % len(images)]) for index in range(num_samples)]
    described = writer.write("image_to_text", [[("image", latent)] for latent in latents], SEEDS["image_to_text"])
    named = [read_caption(text_of(canvas, writer.tokenizer)) for canvas in described]
    images_made = [latent for canvas in painted for latent in canvas.latents("image")]
    return {
        "text_to_image": mean(read_images(images_made) == digits),
        "distance": distance(np.stack(images_made), np.stack(latents)),
        "image_to_text": mean([a == b for a, b in zip(named, read_images(latents), strict=True)]),
    }


def distance(made: np.ndarray, real: np.ndarray) -> float:
    """Between normal laws of the pixels of two sets of images [n, ...], rounded to four places."""
    ours, theirs = (images.reshape(len(images), -1) for images in (made, real))
    return round(measure_frechet(ours, theirs).value, 4)


def rewrite(writer: Writer, canvases: list[Canvas]) -> list[Canvas]:
    """A right document of many images once more, as it stands after every step of its writing."""
    merits = [
        judge_interleaved([canvas], writer.tokenizer)["documents_right"] * len(canvas.latents("image"))
        for canvas in canvases
    ]
    index = int(np.argmax(merits))
    prompt = parse_prompt(COUNT_PROMPT, writer.tokenizer)
    canvas = blank_canvas(prompt, writer.tokenizer, writer.config.modality, SEEDS["interleaved"], index)
    states = [canvas.copy()]
    for _ in generate_steps(writer.model, [canvas], writer.config, writer.tokenizer):
        states.append(canvas.copy())
    return states


def count_parts(canvas: Canvas, tokenizer: Tokenizer, prompt: str = COUNT_PROMPT) -> list[str | tuple[str, int]]:
    """The words and images of a counting document, without its prompt."""
    parts = [part.removeprefix(prompt).strip() if isinstance(part, str) else part for part in canvas.parts(tokenizer)]
    return [part for part in parts if part != ""]


def text_of(canvas: Canvas, tokenizer: Tokenizer) -> str:
    """All text of a document."""
    return " ".join(part for part in canvas.parts(tokenizer) if isinstance(part, str))


def mean(values: Any) -> float:
    """The mean, rounded to four places; 0 of nothing."""
    return round(float(np.mean(values)), 4) if len(values) else 0.0
