"""Learn a byte-pair vocabulary from the text of shards; writes a tiktoken ranks file."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from oneflow_dist.bars import bar
from oneflow_dist.data.tokenizer import SPECIAL_TOKENS, load_tokenizer, train_ranks, write_ranks
from oneflow_dist.runtime import run_program


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", nargs="+", help="brace or wildcard patterns of tars")
    parser.add_argument("output", type=Path, help="the ranks file, as data/emoji.tiktoken")
    parser.add_argument("--vocab-size", type=int, default=4096, help="of the ranks, special tokens not counted")
    args = parser.parse_intermixed_args()
    if args.vocab_size < 256:
        raise ValueError(f"--vocab-size: {args.vocab_size} must be at least 256, one for each byte")
    if args.output.exists():
        raise ValueError(f"{args.output} exists, and runs may depend on it; name a new file or remove it")
    texts = [text for pattern in args.shards for text in read_texts(pattern)]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    partial = args.output.with_name(args.output.name + ".partial")
    write_ranks(partial, train_ranks(texts, args.vocab_size))
    partial.rename(args.output)
    tokenizer = load_tokenizer(str(args.output))
    num_bytes = sum(len(text.encode()) for text in texts)
    num_tokens = sum(len(tokenizer.encode(text)) for text in texts)
    print(f"{args.output}: {tokenizer.vocab_size - len(SPECIAL_TOKENS)} ranks, sha256 {tokenizer.sha256}")
    print(f"{len(texts)} texts, {num_bytes} bytes, {num_tokens} tokens: {num_bytes / num_tokens:.2f} bytes a token")
    print(f"model.vocab_size must be at least {tokenizer.vocab_size}, with the special tokens")


def read_texts(pattern: str) -> Iterator[str]:
    """Every text of every sample."""
    # Here, since it takes seconds: what is wrong on the command line has been answered by then.
    from oneflow_dist.data.decoding import read_fields, read_segments
    from oneflow_dist.data.shards import open_shards

    shards = open_shards("shards", pattern)
    for index in bar(range(len(shards)), unit="sample"):
        record = shards.read(index)
        yield from (segment.text for segment in read_segments(record, read_fields(record)) if segment.text)


if __name__ == "__main__":
    run_program(main)
