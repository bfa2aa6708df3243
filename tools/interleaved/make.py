"""Write the interleaved benchmark as a folder with its data, prompts and scorer, and shards of stories to train on."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from oneflow_dist.config import RANGES
from oneflow_dist.data.tokenizer import train_ranks, write_ranks
from oneflow_dist.evaluation.interleaved.parts import PARTS
from oneflow_dist.evaluation.interleaved.scenes import COLOURS, COUNTS
from oneflow_dist.runtime import run_program
from oneflow_dist.toml import check_range
from tools.digits.grammar import COUNT_PROMPT, WORDS, load_split
from tools.interleaved.icons import all_boards
from tools.interleaved.raw import Figure, list_figures, read_icons
from tools.interleaved.stories import Story, draw_story
from tools.shards import encode_png, write_shards

ROOT = Path(__file__).parents[2]
SCORER = ("answers.py", "bootstrap.py", "__init__.py", "interleaved")  # of oneflow_dist/evaluation
Icons = Mapping[str, np.ndarray]  # by noun
CHOICES = 8  # figures, or captions, of which one is right


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the benchmark, the shards and the vocabulary go")
    parser.add_argument("--emoji", default="data/emoji/*train*.tar", help="shards of named emoji (%(default)s)")
    parser.add_argument("--sections", default="data/openstax/*val*.tar", help="shards of sections (%(default)s)")
    parser.add_argument("--stories", type=int, default=12288, help="to train on (%(default)s)")
    parser.add_argument("--items", type=int, default=256, help="of each part of the benchmark, at most (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    check_range("--stories", args.stories, "[1, inf)")
    check_range("--items", args.items, "[1, inf)")
    check_range("--seed", args.seed, RANGES["run"]["seed"])
    icons = read_icons(args.emoji)
    asked = write_benchmark(args.folder / "benchmark", icons, args.sections, args.items, args.seed)
    rng = np.random.default_rng([args.seed, 2])
    write_shards(args.folder, "stories-heldout", [tell(story, icons, rng) for story in asked.values()])
    write_training(args.folder, icons, args.stories, asked, args.seed)
    print(f"wrote {args.folder / 'benchmark'}, and shards of {args.stories} stories beside it")


def write_benchmark(folder: Path, icons: Icons, sections: str, number: int, seed: int) -> dict[str, Story]:
    """The folder that is released, anew; returns the stories that it asks for."""
    for part in PARTS:
        shutil.rmtree(folder / part, ignore_errors=True)
        (folder / part).mkdir(parents=True)
    write_counting(folder / "counting", number)
    asked = write_stories(folder / "stories", icons, number, seed)
    write_figures(folder / "figures", sections, number)
    copy_scorer(folder)
    return asked


def write_items(folder: Path, items: list[dict[str, Any]]) -> None:
    """A line of JSON for each."""
    lines = "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
    (folder / "items.jsonl").write_text(lines, encoding="utf-8")


def write_counting(folder: Path, number: int) -> None:
    """One prompt, many times; the judge knows the digits of the training split."""
    items = [{"key": f"{n:04d}", "prompt": COUNT_PROMPT, "longest": len(WORDS)} for n in range(number)]
    write_items(folder, items)
    for index, (image, label) in enumerate(zip(*load_split("train"), strict=True)):
        path = folder / "labelled" / WORDS[label] / f"{index:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(image))


def write_stories(folder: Path, icons: Icons, number: int, seed: int) -> dict[str, Story]:
    """Stories that are asked for, returned by their prompts; the judge knows every picture that a scene can have."""
    rng, stories = np.random.default_rng([seed, 1]), dict[str, Story]()
    while len(stories) < number:
        story = draw_story(rng)
        stories[story.prompt] = story
    items = [
        {"key": f"{n:04d}", "prompt": f"<|user|>{story.prompt}<|assistant|>", "scenes": story.scenes}
        for n, story in enumerate(stories.values())
    ]
    write_items(folder, items)
    for label in list_labels(icons):
        path = folder / "labelled" / label.replace(" ", "_")
        path.mkdir(parents=True)
        for place, board in enumerate(all_boards(icons, label)):
            (path / f"{place}.png").write_bytes(encode_png(board))
    return stories


def list_labels(icons: Icons) -> list[str]:
    """What a scene can be of."""
    return [f"{count} {colour} {noun}" for count in COUNTS for colour in COLOURS for noun in icons]


def write_figures(folder: Path, sections: str, number: int) -> None:
    """Figures to paint after captions, and captions to choose for figures; distractors come from the same book.

    Figures of a book with too few of them are distractors of none, and not asked for.

    Raises:
        ValueError: none is left.
    """
    figures = list_figures(sections)
    (folder / "pictures").mkdir()
    for figure in figures:
        (folder / "pictures" / f"{figure.key}.jpg").write_bytes(figure.content)
    items = []
    for place, figure in enumerate(figures):
        others = [other for other in figures if other.book == figure.book and other.key != figure.key]
        if len(others) >= CHOICES - 1:
            drawn = np.random.default_rng([0, place]).choice(len(others), CHOICES - 1, replace=False)
            items.append(ask_figure([figure, *(others[n] for n in drawn)]))
    if not items:
        raise ValueError(f"--sections: {sections} has no book with {CHOICES} captioned figures; name more shards")
    write_items(folder, items[:number])


def ask_figure(choices: Sequence[Figure]) -> dict[str, Any]:
    """The item of the first of these figures."""
    figure = choices[0]
    return {
        "key": figure.key,
        "prompt": "{caption}<|image|>",
        "caption": figure.caption,
        "pictures": [f"pictures/{one.key}.jpg" for one in choices],
        "choices": [one.caption for one in choices],
        "references": [figure.caption],
    }


def copy_scorer(folder: Path) -> None:
    """What scores answers, as it is here; it needs numpy, Pillow and jaxtyping."""
    source, target = ROOT / "oneflow_dist" / "evaluation", folder / "oneflow_dist" / "evaluation"
    shutil.rmtree(folder / "oneflow_dist", ignore_errors=True)
    target.mkdir(parents=True)
    # Without it Python would take the package that is installed instead, if there is one.
    shutil.copyfile(source.parent / "__init__.py", target.parent / "__init__.py")
    for name in SCORER:
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source / name, target / name)
    shutil.copyfile(ROOT / "LICENSE", folder / "LICENSE")
    for name in ("score.py", "README.md"):
        shutil.copyfile(Path(__file__).with_name(name), folder / name)


def write_training(folder: Path, icons: Icons, number: int, held_out: Container[str], seed: int) -> None:
    """Conversations with stories that the benchmark does not ask for, and the vocabulary of all of them."""
    rng, samples, texts = np.random.default_rng([seed, 0]), list[dict[str, bytes | str]](), list[str]()
    while len(samples) < number:
        story = draw_story(rng)
        if story.prompt not in held_out:
            samples.append(tell(story, icons, rng))
            texts += [story.prompt, *story.texts]
    write_shards(folder, "stories-train", samples)
    write_ranks(folder / "words.tiktoken", train_ranks(texts, vocab_size=512))


def tell(story: Story, icons: Icons, rng: np.random.Generator) -> dict[str, bytes | str]:
    """A conversation in which a story is asked for and told."""
    segments: list[dict[str, str]] = [{"type": "text", "role": "user", "text": story.prompt}]
    files: dict[str, bytes | str] = {}
    for place, (label, text) in enumerate(zip(story.scenes, story.texts, strict=True)):
        boards = all_boards(icons, label)
        files[f"{place}.png"] = encode_png(boards[rng.integers(len(boards))])
        segments += [
            {"type": "text", "role": "assistant", "text": text},
            {"type": "image", "role": "assistant", "image": f"{place}.png"},
        ]
    return {"json": json.dumps({"segments": segments}), **files}


if __name__ == "__main__":
    run_program(main)
