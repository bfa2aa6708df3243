"""Write easy-VQA's questions as WebDataset shards: each with its picture, its answer and the number of the picture."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

from oneflow_dist.extras import require
from oneflow_dist.runtime import run_program
from oneflow_dist.toml import check_range
from tools.shards import write_shards

SPLITS = {"train": "train", "heldout": "test"}  # the package's names: no picture is in both


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the shards go")
    parser.add_argument("--questions", type=int, help="at most so many of each split (all)")
    args = parser.parse_args()
    if args.questions is not None:
        check_range("--questions", args.questions, "[1, inf)")
    package = find_package("tools/vqa/make.py")
    args.folder.mkdir(parents=True, exist_ok=True)
    for split, theirs in SPLITS.items():
        write_shards(args.folder, split, _make_samples(package, theirs)[: args.questions])


def find_package(program: str) -> Any:
    """easy-VQA's package.

    Raises:
        ValueError: it is not installed; names the program that needs it.
    """
    require(program, "experiments", "easy_vqa")
    import easy_vqa

    return easy_vqa


def _make_samples(package: Any, split: str) -> list[dict[str, bytes | str]]:
    """A sample for each question of a split, shuffled: any part of the shards shows nearly all pictures."""
    paths = getattr(package, f"get_{split}_image_paths")()
    pictures = {number: Path(path).read_bytes() for number, path in paths.items()}
    questions = list(zip(*getattr(package, f"get_{split}_questions")(), strict=True))
    random.Random(0).shuffle(questions)
    return [
        {"png": pictures[number], "json": json.dumps({"question": question, "answer": answer, "picture": number})}
        for question, answer, number in questions
    ]


if __name__ == "__main__":
    run_program(main)
