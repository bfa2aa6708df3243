"""What a model of handwritten digits writes, judged as tools/digits/evaluate.py does it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from oneflow_dist.canvas import Prompt, parse_prompt
from oneflow_dist.data.codec import pixels_to_latent
from oneflow_dist.data.tokenizer import load_tokenizer
from oneflow_dist.trained import load_model
from tools.digits.grammar import CAPTIONS, COUNT_PROMPT, MAX_COUNT, WORDS, load_split, read_caption, read_images
from tools.digits.judging import Writer, distance, judge_interleaved, judge_single, mean, text_of
from tools.experiments.reading import Probe
from tools.experiments.rows import Row, Subject, ways_of

LONGEST = 30  # images of a long counting document
SEED = 100  # of the documents of run seed 0; each further seed has the next


def measure(subject: Subject, probe: Probe) -> Iterator[Row]:
    """Of every kind of documents that the probe names, in every way and with every value.

    Raises:
        ValueError: the probe names a kind that is none of KINDS.
    """
    unknown = [kind for kind in probe.kinds if kind not in KINDS]
    if unknown:
        raise ValueError(f"kinds: {', '.join(unknown)}: unknown; known are {', '.join(KINDS)}")
    model, config = load_model(subject.folder)
    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    for way, x, varied in ways_of(config, probe):
        writer = Writer(model, varied, tokenizer)
        for kind in probe.kinds:
            for figure, value in KINDS[kind](writer, probe.documents, SEED + subject.seed).items():
                yield Row(way, x, figure, value)


def write_single(writer: Writer, number: int, seed: int) -> dict[str, float]:
    """A caption and its image from nothing."""
    found = judge_single(writer.write("single", [[]] * number, seed), writer.tokenizer)
    return {
        "single_text": found["valid_text"],
        "single_image": found["has_image"],
        "single_agreement": found["agreement"],
    }


def write_both(writer: Writer, number: int, seed: int) -> dict[str, float]:
    """The same with an image that is there from the start; who looks back alone says by itself that one follows."""
    hole: Prompt = [] if writer.config.objective.looks_back else parse_prompt("<|hole|><|image|>", writer.tokenizer)
    found = judge_single(writer.write("both", [hole] * number, seed), writer.tokenizer)
    return {"both_text": found["valid_text"], "both_agreement": found["agreement"]}


def write_count(writer: Writer, number: int, seed: int) -> dict[str, float]:
    """Counting documents, of as many images as the model likes."""
    prompt = parse_prompt(COUNT_PROMPT, writer.tokenizer)
    return _judge_count(writer, [prompt] * number, seed)


def write_count_given(writer: Writer, number: int, seed: int) -> dict[str, float]:
    """The same where the number of images is told, as in the data: one to five of them, with a hole before each."""
    lengths = np.arange(number) % MAX_COUNT + 1
    prompts = [parse_prompt(COUNT_PROMPT + "<|hole|><|image|>" * int(n), writer.tokenizer) for n in lengths]
    return _judge_count(writer, prompts, seed)


def write_long(writer: Writer, number: int, seed: int) -> dict[str, float]:
    """Of a model of up to 30 images."""
    prompt = parse_prompt(COUNT_PROMPT, writer.tokenizer)
    return _judge_count(writer, [prompt] * number, seed, LONGEST)


def _judge_count(writer: Writer, prompts: Sequence[Prompt], seed: int, longest: int = MAX_COUNT) -> dict[str, float]:
    canvases = writer.write("count", prompts, seed)
    found = judge_interleaved(canvases, writer.tokenizer, longest=longest)
    return {
        "count_text": found["valid_text"],
        "count_image": found["has_image"],
        "count_agreement": found["agreement"],
        "count_right": found["documents_right"],
        "count_images": float(np.mean([len(canvas.latents("image")) for canvas in canvases])),
    }


def paint(writer: Writer, number: int, seed: int) -> dict[str, float]:
    """An image to each caption: does it show the digit, and how far are all from held-out ones?"""
    digits = np.arange(number) % 10
    captions = [CAPTIONS[index // 10 % len(CAPTIONS)].format(WORDS[digit]) for index, digit in enumerate(digits)]
    prompts = [parse_prompt(f"{caption}<|image|>", writer.tokenizer) for caption in captions]
    made = [latent for canvas in writer.write("painted", prompts, seed) for latent in canvas.latents("image")]
    return {"painted_right": mean(read_images(made) == digits), "distance": distance(np.stack(made), _held_out(number))}


def tell(writer: Writer, number: int, seed: int) -> dict[str, float]:
    """A caption to each held-out image: does it name the digit?"""
    latents = _held_out(number)
    written = writer.write("told", [[("image", latent)] for latent in latents], seed)
    named = [read_caption(text_of(canvas, writer.tokenizer)) for canvas in written]
    return {"told_right": mean([a == b for a, b in zip(named, read_images(latents), strict=True)])}


def _held_out(number: int) -> np.ndarray:
    images, _ = load_split("heldout")
    return np.stack([pixels_to_latent(images[index % len(images)]) for index in range(number)])


KINDS: dict[str, Callable[[Writer, int, int], dict[str, float]]] = {
    "single": write_single,
    "both": write_both,
    "count": write_count,
    "count_given": write_count_given,
    "long": write_long,
    "painted": paint,
    "told": tell,
}
