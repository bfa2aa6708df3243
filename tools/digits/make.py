"""Write scikit-learn's handwritten digits as WebDataset shards: captioned images, counting documents; and a seven."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from oneflow_dist.config import RANGES
from oneflow_dist.data.tokenizer import train_ranks, write_ranks
from oneflow_dist.runtime import run_program
from oneflow_dist.toml import check_range
from tools.digits.grammar import CAPTIONS, COUNT_PROMPT, WORDS, count_up, load_split

SHARD_SAMPLES = 1024


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the shards and the vocabulary go")
    parser.add_argument("--documents", type=int, default=4096, help="counting documents of the training split")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    check_range("--documents", args.documents, "[1, inf)")
    check_range("--seed", args.seed, RANGES["run"]["seed"])
    args.folder.mkdir(parents=True, exist_ok=True)
    texts = []
    for split, num_documents in (("train", args.documents), ("heldout", args.documents // 8)):
        images, labels = load_split(split)
        rng = np.random.default_rng([args.seed, split == "heldout"])
        pairs = [_make_pair(image, label, rng) for image, label in zip(images, labels, strict=True)]
        documents = [_make_document(images, labels, rng) for _ in range(num_documents)]
        _write(args.folder, f"single-{split}", pairs)
        _write(args.folder, f"count-{split}", documents)
        texts += [str(files["txt"]) for files in pairs]
        if split == "heldout":  # a picture to describe
            (args.folder / "seven.png").write_bytes(_png(images[list(labels).index(7)]))
    texts += 2 * [COUNT_PROMPT, *(f" {word}" for word in WORDS)]  # with the blank, captions and counts share tokens
    write_ranks(args.folder / "words.tiktoken", train_ranks(texts, vocab_size=512))


def _make_pair(image: np.ndarray, label: int, rng: np.random.Generator) -> dict[str, bytes | str]:
    caption = CAPTIONS[rng.integers(len(CAPTIONS))].format(WORDS[label])
    return {"png": _png(image), "txt": caption, "json": json.dumps({"digit": int(label)})}


def _make_document(images: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> dict[str, bytes | str]:
    segments: list[dict[str, str]] = []
    files: dict[str, bytes | str] = {}
    for number, digit in enumerate(count_up(rng)):
        image = images[rng.choice(np.flatnonzero(labels == digit))]
        segments += [{"type": "text", "text": f" {WORDS[digit]}"}, {"type": "image", "image": f"{number}.png"}]
        files[f"{number}.png"] = _png(image)
    return {"json": json.dumps({"segments": segments}), **files}


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def _write(folder: Path, name: str, samples: list[dict[str, bytes | str]]) -> None:
    """Write the shards of one set; those of an earlier call with more samples go."""
    import webdataset  # here, since it imports torch

    num_shards = -(-len(samples) // SHARD_SAMPLES)
    for path in sorted(folder.glob(f"{name}-*.tar"))[num_shards:]:
        path.unlink()
    for shard, first in enumerate(range(0, len(samples), SHARD_SAMPLES)):
        path = folder / f"{name}-{shard:06d}.tar"
        with webdataset.TarWriter(str(path.with_suffix(".tmp")), mtime=0) as tar:
            for number, files in enumerate(samples[first : first + SHARD_SAMPLES], start=first):
                tar.write({"__key__": f"{number:06d}", **files})
        path.with_suffix(".tmp").rename(path)


if __name__ == "__main__":
    run_program(main)
