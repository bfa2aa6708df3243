"""Write scikit-learn's handwritten digits as WebDataset shards: captioned images, counting documents; and a seven."""

from __future__ import annotations

import json

import numpy as np

from oneflow_dist.data.tokenizer import train_ranks, write_ranks
from oneflow_dist.runtime import run_program
from tools.digits.grammar import CAPTIONS, COUNT_PROMPT, MAX_COUNT, WORDS, count_up, load_split
from tools.shards import PREFIXES, encode_png, parse_arguments, write_shards


def main() -> None:
    """Entry point."""
    others = {"longest": (MAX_COUNT, "images of the longest counting document")}
    args = parse_arguments(__doc__, "counting documents of the training split", others)
    texts = []
    for split, num_documents in (("train", args.documents), ("heldout", args.documents // 8)):
        images, labels = load_split(split)
        rng = np.random.default_rng([args.seed, split == "heldout"])
        pairs = [_make_pair(image, label, rng) for image, label in zip(images, labels, strict=True)]
        documents = [_make_document(images, labels, rng, args.longest) for _ in range(num_documents)]
        write_shards(args.folder, f"single-{split}", pairs, PREFIXES[split])
        write_shards(args.folder, f"count-{split}", documents, PREFIXES[split])
        texts += [str(files["txt"]) for files in pairs]
        if split == "heldout":  # a picture to describe
            (args.folder / "seven.png").write_bytes(encode_png(images[list(labels).index(7)]))
    texts += 2 * [COUNT_PROMPT, *(f" {word}" for word in WORDS)]  # with the blank, captions and counts share tokens
    write_ranks(args.folder / "words.tiktoken", train_ranks(texts, vocab_size=512))


def _make_pair(image: np.ndarray, label: int, rng: np.random.Generator) -> dict[str, bytes | str]:
    caption = CAPTIONS[rng.integers(len(CAPTIONS))].format(WORDS[label])
    return {"png": encode_png(image), "txt": caption, "json": json.dumps({"digit": int(label)})}


def _make_document(
    images: np.ndarray, labels: np.ndarray, rng: np.random.Generator, longest: int
) -> dict[str, bytes | str]:
    segments: list[dict[str, str]] = []
    files: dict[str, bytes | str] = {}
    for number, digit in enumerate(count_up(rng, longest)):
        image = images[rng.choice(np.flatnonzero(labels == digit))]
        segments += [{"type": "text", "text": f" {WORDS[digit]}"}, {"type": "image", "image": f"{number}.png"}]
        files[f"{number}.png"] = encode_png(image)
    return {"json": json.dumps({"segments": segments}), **files}


if __name__ == "__main__":
    run_program(main)
