"""Write pictures of boards with their captions as WebDataset shards, and their vocabulary."""

from __future__ import annotations

import json

import numpy as np

from oneflow_dist.data.tokenizer import train_ranks, write_ranks
from oneflow_dist.runtime import run_program
from tools.boards.grammar import ATTRIBUTES, LABELS, Label, draw_board, write_caption
from tools.shards import PREFIXES, encode_png, parse_arguments, write_shards


def main() -> None:
    """Entry point."""
    args = parse_arguments(__doc__, "pictures of the training split")
    for split, number in (("train", args.documents), ("heldout", args.documents // 8)):
        rng = np.random.default_rng([args.seed, split == "heldout"])
        samples = [_make_pair(LABELS[rng.integers(len(LABELS))], rng) for _ in range(number)]
        write_shards(args.folder, f"pairs-{split}", samples, PREFIXES[split])
    sentences = [write_caption(label) for label in LABELS]
    write_ranks(args.folder / "words.tiktoken", train_ranks(2 * sentences, vocab_size=512))


def _make_pair(label: Label, rng: np.random.Generator) -> dict[str, bytes | str]:
    picture = encode_png(draw_board(label, rng))
    return {"png": picture, "txt": write_caption(label), "json": json.dumps(dict(zip(ATTRIBUTES, label, strict=True)))}


if __name__ == "__main__":
    run_program(main)
