"""Write what the small chain of stages trains on: text, captioned pictures, counting documents and conversations.

Textbook sections, captioned pictures and NLVR are read from shards, easy-VQA and digits come in packages.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from oneflow_dist.runtime import run_program
from oneflow_dist.toml import check_range
from tools.vqa.make import SPLITS, find_package

VOCABULARY = 2048


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the shards and the vocabulary go")
    parser.add_argument("--text", default="data/openstax/openstax-{}-*.tar", help="{} is train or val (%(default)s)")
    parser.add_argument("--pictures", default="data/emoji/emoji-{}-*.tar", help="the same (%(default)s)")
    parser.add_argument("--nlvr", default="data/nlvr/nlvr-dev-*.tar", help="the last one is held out (%(default)s)")
    parser.add_argument("--samples", type=int, help="at most so many of each set (all)")
    args = parser.parse_args()
    if args.samples is not None:
        check_range("--samples", args.samples, "[1, inf)")
    find_package("tools/stages/make.py")
    # Only now, since it takes seconds: what is wrong on the command line has been answered by then.
    from oneflow_dist.data.tokenizer import train_ranks, write_ranks
    from tools.shards import PREFIXES, write_shards
    from tools.stages.sets import make_sets, texts_of

    for option in ("text", "pictures"):
        if "{}" not in getattr(args, option):
            raise ValueError(f"--{option}: {getattr(args, option)} has no {{}} where `train` or `val` stands; write it")
    args.folder.mkdir(parents=True, exist_ok=True)
    texts: list[str] = []
    for split in SPLITS:
        for name, samples in make_sets(split, args.text, args.pictures, args.nlvr):
            chosen = list(itertools.islice(samples, args.samples))
            write_shards(args.folder, f"{name}-{split}", chosen, PREFIXES[split])
            texts += [text for files in chosen for text in texts_of(files)] if split == "train" else []
    write_ranks(args.folder / "words.tiktoken", train_ranks(texts, VOCABULARY))  # last: it stands for all


if __name__ == "__main__":
    run_program(main)
