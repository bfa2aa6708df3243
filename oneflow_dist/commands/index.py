"""Write the index of each shard ahead of a run, for remote shards into a folder; or check shards against theirs."""

from __future__ import annotations

import argparse
from pathlib import Path

from oneflow_dist.bars import bar
from oneflow_dist.data.index import ShardIndex, decode_index, file_sha256, index_tar, read_or_write_index
from oneflow_dist.files import write_whole
from oneflow_dist.runtime import run_program


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", help="brace or wildcard pattern of tars, or URLs with braces")
    parser.add_argument("--output", help="folder for the indexes, to be named by `index` in the mixture; else beside")
    parser.add_argument("--check", action="store_true", help="read each local shard whole and compare its checksum")
    args = parser.parse_args()
    # Only now, since it takes seconds: what is wrong on the command line has been answered by then.
    from oneflow_dist.data.shards import is_remote, list_shards

    paths = list_shards("shards", args.shards)
    if args.output:
        Path(args.output).expanduser().mkdir(parents=True, exist_ok=True)
    samples, num_bytes = 0, 0
    with bar(paths, unit="shard") as shown:
        for path in shown:
            index = index_remote(path, args.output) if is_remote(path) else index_local(path, args.output)
            if args.check and not is_remote(path):
                check(Path(path), index)
            samples, num_bytes = samples + len(index), num_bytes + index.tar_bytes
            shown.set_postfix(samples=samples)
    print(f"{len(paths)} shards, {samples} samples, {num_bytes / 2**30:.2f} GiB{', all intact' if args.check else ''}")


def index_local(path: str, folder: str | None) -> ShardIndex:
    """The index of a shard on a file system; written where it is missing or stale."""
    from oneflow_dist.data.shards import index_name

    return read_or_write_index(Path(path), Path(index_name(path, folder)), path)


def index_remote(url: str, folder: str | None) -> ShardIndex:
    """The index of a remote shard, which is fetched once; written to `folder`."""
    from oneflow_dist.data.shards import fetched, index_name

    if folder is None:
        raise ValueError(f"{url}: an index cannot be written beside a remote shard; give --output FOLDER")
    with fetched(url) as path:
        content = index_tar(path, url)
    write_whole(Path(index_name(url, folder)), content)
    return decode_index(content, url)


def check(path: Path, index: ShardIndex) -> None:
    """Compare every byte of a shard with what was indexed.

    Raises:
        ValueError: they differ.
    """
    with path.open("rb") as file:
        sha256 = file_sha256(file)
    if sha256 != index.tar_sha256:
        raise ValueError(
            f"{path}: its sha256 is {sha256}, but {index.tar_sha256} was indexed; copy it again or delete its index"
        )


if __name__ == "__main__":
    run_program(main)
