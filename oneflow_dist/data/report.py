"""What a source holds, and what of it is not read: nothing is left out without a word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from oneflow_dist.data.decoding import is_piece
from oneflow_dist.data.mixture import Source
from oneflow_dist.data.shards import ShardSet
from oneflow_dist.data.tar import DIMENSIONS, DOTTED, TEXT_EXTENSIONS, describe_unread
from oneflow_dist.modality import BESIDE, Modalities

WITHOUT_PICTURES = ("text_only", "instruct")  # the tasks that need none; a question may have any number
WITHOUT_TEXT = ("image_only",)
KNOWN = (
    "pictures are read as .png, .jpg, .jpeg and .webp, sounds as .wav, moving pictures as .apng, latents as .npy, "
    "text as .txt and .json"
)
DOTS = "; all after the first dot of a file's name is its extension, so a key has no dots: replace them, as by -"


def report_source(source: Source, shards: ShardSet) -> str:
    """One line for the log: samples, shards, members of each kind, and what is not read.

    Raises:
        ValueError: files are not read, and what one of the source's tasks wants, pictures or text, is not there at all.
    """
    held, unread = _count_kinds(shards.counts), shards.unread
    files = ", ".join(f"{count} {kind}" for kind, count in sorted(held.items()))
    counted = f"{_plural(len(shards), 'sample')} in {_plural(len(shards.paths), 'shard')}"
    line = f"source {source.name}: {counted}, {files}"
    if not unread:
        return line
    not_read = f"not read: {describe_unread(unread)}"
    has_pictures, has_text = any(map(is_piece, shards.counts)), any(kind in held for kind in TEXT_EXTENSIONS)
    for what, is_there, tasks in (("pictures", has_pictures, WITHOUT_PICTURES), ("text", has_text, WITHOUT_TEXT)):
        wanting = [task for task in source.tasks if task not in tasks]
        if wanting and not is_there:
            dots = DOTS if any(kind.startswith(DOTTED) for kind in unread) else ""
            raise ValueError(
                f"{line}, but no {what}, which task {wanting[0]!r} wants; {not_read}; {KNOWN}{dots}; "
                "write what is missing so, or give the source another task"
            )
    return f"{line}; {not_read}"


def report_modalities(modalities: Modalities, shards: Sequence[ShardSet]) -> list[str]:
    """A line for the log of each modality that can be generated and that no source has anything of."""
    lines, found = [], {extension for of_source in shards for extension in of_source.counts if is_piece(extension)}
    stems = {extension.rpartition(".")[0].rpartition(".")[2] for extension in found}
    kinds = {DIMENSIONS.get(extension.rpartition(".")[2], 2) for extension in found}
    for name, modality in modalities.items():
        if modality.is_target and name not in stems and modality.dimensions not in kinds:
            lines.append(
                f"modality.{name}: no source has files of {modality.dimensions} dimensions or arrays called {name}: "
                "nothing of it is trained"
            )
    return lines


def _count_kinds(counts: Counter[str]) -> Counter[str]:
    """By the last part of the extension; arrays that belong to an image or text by the last two."""
    kinds = Counter[str]()
    for extension, count in counts.items():
        stem, _, kind = extension.rpartition(".")
        beside = stem.rpartition(".")[2]
        kinds[f"{beside}.npy" if kind == "npy" and beside in BESIDE else kind] += count
    return kinds


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
