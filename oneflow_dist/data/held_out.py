"""Which documents are held out: training leaves them out, whatever they are called there."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from oneflow_dist.containers import ShardRecord
from oneflow_dist.data.mixture import load_mixture
from oneflow_dist.data.shards import ShardSet, open_shards
from oneflow_dist.data.tar import TEXT_EXTENSIONS

HEAD_BYTES = 4096  # of a picture or an array: enough to tell it from others of its length


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """All documents of a mixture of held-out sources."""

    keys: frozenset[tuple[str, str]]  # source, and key in its shard: sources of one name share their keys
    digests: frozenset[bytes]

    def has(self, source: str, key: str, record: ShardRecord) -> bool:
        """Whether a document is one of them, by its name or by what it holds."""
        return (source, key) in self.keys or digest_of(record) in self.digests


def find_held_out(mixture: str, shards: Sequence[ShardSet]) -> HeldOut:
    """The documents of a mixture; each is read once.

    Args:
        shards: those of training.

    Raises:
        ValueError: the mixture or its shards cannot be used, or one of these is a shard of training.
    """
    trained = {index.tar_sha256: path for of in shards for path, index in zip(of.paths, of.indexes, strict=True)}
    keys, digests = set(), set()
    for source in load_mixture(mixture):
        held_out = open_shards(source.name, source.shards, source.index)
        for path, index in zip(held_out.paths, held_out.indexes, strict=True):
            if index.tar_sha256 in trained:
                raise ValueError(
                    f"validation.mixture: {mixture}, source {source.name}: {path} is a shard of training, too "
                    f"({trained[index.tar_sha256]}); take it out of one of the mixtures"
                )
        for sample in range(len(held_out)):
            keys.add((source.name, held_out.key(sample)))
            digests.add(digest_of(held_out.read(sample)))
    return HeldOut(keys=frozenset(keys), digests=frozenset(digests))


def digest_of(record: ShardRecord) -> bytes:
    """Of the members of a record: text whole, of all else the length and the beginning. Its key is not in it."""
    digest = hashlib.blake2b(digest_size=16)
    for extension, content in sorted(record.files.items()):
        digest.update(f"{extension} {len(content)} ".encode())
        digest.update(content if extension in TEXT_EXTENSIONS else content[:HEAD_BYTES])
    return digest.digest()
