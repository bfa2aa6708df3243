"""Write paragraphs of textbook sections, each of at most 240 characters, as WebDataset shards, and their vocabulary."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from oneflow_dist.config import RANGES
from oneflow_dist.runtime import run_program
from oneflow_dist.toml import check_range

SHORTEST, LONGEST = 60, 240  # characters of a document
SENTENCE = re.compile(r"(?<=[.!?]) +")
VOCABULARY = 1024
SPLITS = {"train": "train", "heldout": "val"}  # of the shards that are written: of those that are read


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the shards and the vocabulary go")
    parser.add_argument("--text", default="data/openstax/openstax-{}-*.tar", help="{} is train or val (%(default)s)")
    parser.add_argument("--documents", type=int, default=16384, help="of the training split, at most (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice among all (%(default)s)")
    args = parser.parse_args()
    if "{}" not in args.text:
        raise ValueError(f"--text: {args.text} has no {{}} where `train` or `val` stands; write it")
    check_range("--documents", args.documents, "[1, inf)")
    check_range("--seed", args.seed, RANGES["run"]["seed"])
    # Only now, since it takes seconds: what is wrong on the command line has been answered by then.
    from oneflow_dist.data.tokenizer import train_ranks, write_ranks
    from tools.shards import PREFIXES, write_shards

    args.folder.mkdir(parents=True, exist_ok=True)
    for split, name in SPLITS.items():
        texts = choose(list(read_paragraphs(args.text.format(name))), args.documents, args.seed)
        write_shards(args.folder, f"paragraphs-{split}", [{"txt": text} for text in texts], PREFIXES[split])
        if split == "train":
            write_ranks(args.folder / "words.tiktoken", train_ranks(texts, VOCABULARY))


def read_paragraphs(pattern: str) -> Iterator[str]:
    """The documents of all sections of some shards."""
    from oneflow_dist.data.decoding import read_fields
    from tools.shards import read_records

    for record in read_records(pattern):
        yield from cut_paragraphs(read_fields(record))


def cut_paragraphs(fields: Mapping[str, Any]) -> Iterator[str]:
    """The paragraphs of a section, cut between sentences into documents of SHORTEST to LONGEST characters.

    What is shorter, and a sentence that is longer by itself, is left out.
    """
    for segment in fields["segments"]:
        if segment["type"] == "text" and segment.get("role", "paragraph") == "paragraph":
            parts = [""]
            for sentence in SENTENCE.split(" ".join(segment["text"].split())):
                if len(parts[-1]) + 1 + len(sentence) > LONGEST:
                    parts.append("")
                parts[-1] = f"{parts[-1]} {sentence}".strip()
            yield from (part for part in parts if SHORTEST <= len(part) <= LONGEST)


def choose(texts: list[str], number: int, seed: int) -> list[str]:
    """So many of the texts, or all if they are fewer, each once, in random order."""
    different = list(dict.fromkeys(texts))
    return [different[place] for place in np.random.default_rng(seed).permutation(len(different))[:number]]


if __name__ == "__main__":
    run_program(main)
