"""Write digits in many styles with captions that tell some of it, as WebDataset shards; and a seven."""

from __future__ import annotations

import itertools
import json

import numpy as np

from oneflow_dist.data.tokenizer import train_ranks, write_ranks
from oneflow_dist.runtime import run_program
from tools.digits.grammar import load_split
from tools.shards import PREFIXES, encode_png, parse_arguments, write_shards
from tools.styles.grammar import NAMES, Style, choose, draw_picture, draw_style, write_caption


def main() -> None:
    """Entry point."""
    args = parse_arguments(__doc__, "pictures of the training split")
    for split, number in (("train", args.documents), ("heldout", args.documents // 8)):
        images, labels = load_split(split)
        rng = np.random.default_rng([args.seed, split == "heldout"])
        chosen = rng.integers(len(images), size=number)
        samples = [_make_sample(images[index], labels[index], rng) for index in chosen]
        write_shards(args.folder, f"styles-{split}", samples, PREFIXES[split])
        if split == "heldout":  # a picture to describe
            seven = draw_picture(images[list(labels).index(7)], Style("dim", "seven", "grey", "left"))
            (args.folder / "seven.png").write_bytes(encode_png(seven))
    sentences = [write_caption(Style(*told)) for told in itertools.product(*(("", *words) for words in NAMES))]
    write_ranks(args.folder / "words.tiktoken", train_ranks(sentences, vocab_size=512))


def _make_sample(image: np.ndarray, digit: int, rng: np.random.Generator) -> dict[str, bytes | str]:
    style = draw_style(digit, rng)
    caption = write_caption(choose(style, rng))
    return {"png": encode_png(draw_picture(image, style)), "txt": caption, "json": json.dumps(style._asdict())}


if __name__ == "__main__":
    run_program(main)
