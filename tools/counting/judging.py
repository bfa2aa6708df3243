"""What a model makes of long counting documents, judged and drawn."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from oneflow_dist.canvas import Canvas, Prompt, blank_canvas
from oneflow_dist.commands.sample import with_arguments
from oneflow_dist.data.codec import pixels_to_latent
from oneflow_dist.data.tokenizer import Tokenizer, load_tokenizer
from oneflow_dist.files import naming
from oneflow_dist.pictures import FAINT, PAPER, draw_document, stack, text_line, with_margin
from oneflow_dist.runtime import share_cores
from oneflow_dist.sampler import generate_steps
from oneflow_dist.trained import load_model
from tools.counting.editing import EDITS, Edit, draw_documents, is_restored, is_untouched, take_out
from tools.digits.gallery import WIDTH, draw_moment, draw_section
from tools.digits.grammar import COUNT_PROMPT, WORDS, load_split, read_images
from tools.digits.judging import Writer, check_digits, judge_interleaved, mean

BLOCK_PROMPT = "count on:"  # of documents that are written block by block
MOST_BLOCKS = 100
TIMES = (0.0, 0.2, 0.4, 0.6, 0.8)  # from which images are varied
SEED, MOMENTS, SHOWN = 11, 10, 4
ANY_NUMBER = 1_000_000  # of words: a document may count further than those of the data


@dataclasses.dataclass(frozen=True, slots=True)
class Written:
    """Finished documents, and what they took."""

    canvases: list[Canvas]
    seconds: float
    rows: int  # that the model computed


def evaluate(args: argparse.Namespace) -> None:
    """Edit, vary, write, judge and draw, as the command line of evaluate.py says."""
    share_cores(others=1)  # with whatever else runs here
    model, config = load_model(args.folder)
    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    check_digits(args.folder, config, tokenizer)
    writer = Writer(model, with_arguments(config, args), tokenizer)
    documents = draw_documents(args.samples, args.longest, tokenizer, SEED)
    num_prompt, rng = len(tokenizer.encode(COUNT_PROMPT)), np.random.default_rng(SEED)
    report: dict[str, Any] = {"num_samples": args.samples, "sampling": dataclasses.asdict(writer.config.sampling)}
    shown: list[tuple[Edit, Canvas]] = []
    for what in EDITS:
        edits = take_out(documents, what, num_prompt, rng)
        written = write(writer, f"{what} anew", [edit.prompt for edit in edits])
        report[f"{what} anew"] = judge_edits(edits, written.canvases, tokenizer)
        shown += list(zip(edits, written.canvases, strict=True))[:SHOWN]
    report["variations"] = {str(t): vary(writer, t, args.samples) for t in TIMES}
    for name, prompt, blocks in (("whole", COUNT_PROMPT, 0), ("blocks", BLOCK_PROMPT, MOST_BLOCKS)):
        written = write(in_blocks(writer, blocks), name, [tokenizer.encode(prompt)] * args.samples)
        report[name] = judge_written(written, prompt, args.longest, tokenizer)
    states = write_long(in_blocks(writer, MOST_BLOCKS), written.canvases, args.longest)
    with naming(args.folder):
        (args.folder / "counting.json").write_text(json.dumps(report, indent=2) + "\n")
        draw(args.folder / "counting.png", states, shown, writer)
    print(json.dumps(report, indent=2))
    print(f"wrote {args.folder / 'counting.json'} and {args.folder / 'counting.png'}")


def in_blocks(writer: Writer, blocks: int) -> Writer:
    """The same, writing documents in so many blocks at most."""
    sampling = dataclasses.replace(writer.config.sampling, blocks=blocks)
    return dataclasses.replace(writer, config=dataclasses.replace(writer.config, sampling=sampling))


def write(writer: Writer, name: str, prompts: Sequence[Prompt]) -> Written:
    """A finished document for each prompt; prints how long it took."""
    start, own = time.perf_counter(), (writer.config, writer.tokenizer)
    canvases = [
        blank_canvas(prompt, writer.tokenizer, writer.config.modality, SEED, n) for n, prompt in enumerate(prompts)
    ]
    rows = sum(step.num_rows for step in generate_steps(writer.model, canvases, *own))
    seconds = time.perf_counter() - start
    print(f"{name:<20} {len(canvases)} documents in {seconds:.1f} s", flush=True)
    return Written(canvases, seconds, rows)


def is_right(canvas: Canvas, prompt: str, tokenizer: Tokenizer) -> bool:
    """Whether words count on, any number of them, each is followed by one image, and that shows it."""
    return judge_interleaved([canvas], tokenizer, prompt, longest=ANY_NUMBER)["documents_right"] == 1.0


def judge_edits(edits: list[Edit], canvases: list[Canvas], tokenizer: Tokenizer) -> dict[str, float]:
    """Shares of documents: right again; with that back which was taken out, no more; everything else as it was.

    At an end of a document more may have been there, so that a right one need not be the old one. `within` is the share
    of right ones where something stands on both sides.
    """
    right = np.array([is_right(canvas, COUNT_PROMPT, tokenizer) for canvas in canvases])
    is_within = np.array([edit.place > 4 and edit.place < len(edit.parts) - 1 for edit in edits])
    return {
        "right": mean(right),
        "within": mean(right[is_within]),
        "restored": mean([is_restored(*pair) for pair in zip(edits, canvases, strict=True)]),
        "untouched": mean([is_untouched(*pair) for pair in zip(edits, canvases, strict=True)]),
    }


def vary(writer: Writer, time_of_image: float, number: int) -> dict[str, float]:
    """Held-out images, each under its caption, made anew from a time: how many show their digit, and how far they went.

    The distance is the root of the mean squared difference of pixels, which go from -1 to 1.
    """
    images, labels = load_split("heldout")
    latents = [pixels_to_latent(images[n % len(images)]) for n in range(number)]
    digits = labels[np.arange(number) % len(labels)]
    prompts: list[Prompt] = [
        [*writer.tokenizer.encode(f"{COUNT_PROMPT} {WORDS[digit]}"), ("image", latent, time_of_image)]
        for digit, latent in zip(digits, latents, strict=True)
    ]
    varied = [c.latents("image")[0] for c in write(writer, f"from time {time_of_image}", prompts).canvases]
    distance = np.sqrt(np.square(np.stack(varied) - np.stack(latents)).mean((1, 2, 3)))
    return {"right": mean(read_images(varied) == digits), "distance": mean(distance)}


def judge_written(written: Written, prompt: str, longest: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """How many documents are right, how long they are, and what they took.

    Lengths are to be uniform from 1 to `longest` images: half the sum of absolute differences tells how far they are.
    """
    images = np.array([len(canvas.latents("image")) for canvas in written.canvases])
    counts = np.bincount(np.clip(images, 0, longest + 1), minlength=longest + 2)
    expected = np.r_[0.0, np.full(longest, 1.0 / longest), 0.0]
    return {
        "right": mean([is_right(canvas, prompt, tokenizer) for canvas in written.canvases]),
        "images": mean(images),
        "off_uniform": round(float(np.abs(counts / len(images) - expected).sum() / 2), 4),
        "seconds": round(written.seconds, 1),
        "rows": written.rows,
        "rows_per_image": round(written.rows / max(1, int(images.sum())), 1),
        "by_length": counts.tolist(),
    }


def write_long(writer: Writer, canvases: list[Canvas], longest: int) -> list[Canvas]:
    """A right document of nearly `longest` images once more, as it stands after every step of its writing."""
    lengths = [len(c.latents("image")) * is_right(c, BLOCK_PROMPT, writer.tokenizer) for c in canvases]
    index = int(np.argmin(np.abs(np.array(lengths) - longest)))
    prompt = writer.tokenizer.encode(BLOCK_PROMPT)
    canvas = blank_canvas(prompt, writer.tokenizer, writer.config.modality, SEED, index)
    states = [canvas.copy()]
    for _ in generate_steps(writer.model, [canvas], writer.config, writer.tokenizer):
        states.append(canvas.copy())
    return states


def draw(path: Path, states: list[Canvas], shown: list[tuple[Edit, Canvas]], writer: Writer) -> None:
    """The page: a long document being written, and documents before and after an edit."""
    moments = np.unique(np.linspace(0, len(states) - 1, MOMENTS).round().astype(int))
    strip = [draw_moment(states[step], int(step), len(states) - 1, writer.tokenizer, 40) for step in moments]
    edits = [_draw_edit(edit, canvas, writer) for edit, canvas in shown if len(edit.digits) <= 8] or [
        text_line("(all too long to be shown)", 15, FAINT)
    ]
    sections = [
        draw_section("A document written block by block: what is finished is prompt", stack(strip, gap=12)),
        draw_section("A word or an image taken out, and what the model put there", stack(edits, gap=16)),
    ]
    with_margin(stack(sections, gap=36), 32).save(path)


def _draw_edit(edit: Edit, canvas: Canvas, writer: Writer) -> Image.Image:
    own = writer.tokenizer, writer.config.modality
    before = draw_document(blank_canvas(edit.parts, *own, 0, 0), writer.tokenizer, WIDTH, 40)
    after = draw_document(canvas, writer.tokenizer, WIDTH, 40)
    marked = [*edit.parts[: edit.place], *writer.tokenizer.encode(" ___"), *edit.parts[edit.place + 1 :]]
    rest = draw_document(blank_canvas(marked, *own, 0, 0), writer.tokenizer, WIDTH, 40)
    rows = [(text_line(name, 13, FAINT), page) for name, page in (("was", before), ("given", rest), ("now", after))]
    pages = []
    for label, page in rows:
        row = Image.new("RGB", (60 + page.width, max(page.height, label.height)), PAPER)
        row.paste(label, (0, (row.height - label.height) // 2))
        row.paste(page, (60, 0))
        pages.append(row)
    return stack(pages, gap=4)
