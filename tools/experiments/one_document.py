"""Write a single document, a caption and its handwritten digit, as a shard: what a model can learn by heart."""

from __future__ import annotations

import argparse
from pathlib import Path

from oneflow_dist.runtime import run_program
from tools.digits.grammar import CAPTIONS, WORDS, load_split
from tools.shards import encode_png, write_shards


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the shard goes")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    images, labels = load_split("train")
    write_shards(args.folder, "one", [{"png": encode_png(images[0]), "txt": CAPTIONS[0].format(WORDS[labels[0]])}])


if __name__ == "__main__":
    run_program(main)
