"""Write digits as WebDataset shards: documents of a word, a picture, a sound and a video; pairs; and a seven."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from PIL import Image

from oneflow_dist.data.tokenizer import train_ranks, write_ranks
from oneflow_dist.runtime import run_program
from tools.digits.grammar import WORDS, load_split
from tools.shards import PREFIXES, encode_png, parse_arguments, write_shards
from tools.sounds.variations import DIRECTIONS, RATE, STEPS, scroll, speak

KINDS = {"image": "png", "sound": "wav", "video": "apng"}  # beside text, and how their files end
MILLISECONDS = 100  # of a frame of a video


def main() -> None:
    """Entry point."""
    args = parse_arguments(__doc__, "of the training split; as many pairs")
    for split, number in (("train", args.documents), ("heldout", args.documents // 8)):
        images, labels = load_split(split)
        pictures = [images[labels == digit] for digit in range(10)]
        for name, make in (("together", _make_document), ("pair", _make_pair)):
            keys = [(args.seed, split == "heldout", name == "pair", index) for index in range(number)]
            samples = [make(pictures, np.random.default_rng(key)) for key in keys]
            write_shards(args.folder, f"{name}-{split}", samples, PREFIXES[split])
        if split == "heldout":  # to describe
            for kind, extension in KINDS.items():
                data = _encode(kind, 7, pictures, np.random.default_rng(args.seed))
                (args.folder / f"seven.{extension}").write_bytes(data)
    texts = [f"{blank}{word}" for blank in ("", " ") for word in WORDS]
    write_ranks(args.folder / "words.tiktoken", train_ranks(2 * texts, vocab_size=512))


def _make_document(pictures: list[np.ndarray], rng: np.random.Generator) -> dict[str, bytes | str]:
    """All of a digit, in any order."""
    order = [str(kind) for kind in rng.permutation(["text", *KINDS])]
    return _make_sample(order, pictures, rng)


def _make_pair(pictures: list[np.ndarray], rng: np.random.Generator) -> dict[str, bytes | str]:
    """The word of a digit, then one of the rest."""
    return _make_sample(["text", str(rng.choice(list(KINDS)))], pictures, rng)


def _make_sample(order: Sequence[str], pictures: list[np.ndarray], rng: np.random.Generator) -> dict[str, bytes | str]:
    digit = int(rng.integers(10))
    segments: list[dict[str, str]] = []
    files: dict[str, bytes | str] = {}
    for kind in order:
        if kind == "text":
            segments.append({"type": "text", "text": f" {WORDS[digit]}"})
        else:
            name = f"{len(files)}.{KINDS[kind]}"
            segments.append({"type": kind, kind: name})
            files[name] = _encode(kind, digit, pictures, rng)
    return {"json": json.dumps({"digit": digit, "segments": segments}), **files}


def _encode(kind: str, digit: int, pictures: list[np.ndarray], rng: np.random.Generator) -> bytes:
    """A file that shows or says a digit in one of many ways."""
    from oneflow_dist.data.moving import encode_animation  # here, since they import torch
    from oneflow_dist.data.sound import encode_wave

    if kind == "sound":
        return encode_wave(speak(digit, rng), RATE)
    picture = rng.choice(pictures[digit])
    if kind == "image":
        return encode_png(picture)
    frames = scroll(np.stack([picture] * STEPS), DIRECTIONS[rng.integers(len(DIRECTIONS))])
    return encode_animation([Image.fromarray(frame) for frame in frames], MILLISECONDS, "png")


if __name__ == "__main__":
    run_program(main)
