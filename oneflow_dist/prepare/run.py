"""From a folder of pictures and texts to data, a config and a page about both, in steps that a kill does not undo."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oneflow_dist.data.tokenizer import Tokenizer, load_tokenizer, train_ranks, write_ranks
from oneflow_dist.files import write_whole
from oneflow_dist.precompute.crop import CropPolicy
from oneflow_dist.prepare.items import Source
from oneflow_dist.prepare.readers import open_source
from oneflow_dist.prepare.recipe import (
    CONFIG,
    HELD_OUT_MIXTURE,
    MIXTURE,
    WORDS,
    Images,
    choose_prompts,
    count_kinds,
    default_vocab_size,
    write_mixture,
)
from oneflow_dist.prepare.settings import Options, check_options, describe_source, kept_settings, versions
from oneflow_dist.prepare.shards import HELD_OUT, TRAIN, Placed, ShardPlan, count_captions, plan_shards, write_shards
from oneflow_dist.prepare.sheet import draw_sheet
from oneflow_dist.prepare.split import Split, split_samples
from oneflow_dist.prepare.statistics import measure
from oneflow_dist.prepare.summary import Outcome, write_summary
from oneflow_dist.prepare.work import list_parts, prepare_parts, remove_parts

if TYPE_CHECKING:
    from oneflow_dist.prepare.measured import Measured

SUMMARY, SHEET, DUPLICATES, PROBLEMS = "summary.md", "contact_sheet.png", "duplicates.jsonl", "problems.jsonl"
LATENTS = "latents"
MAX_BAD = 0.5  # of the items
REASONS_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What the items of a source became, and the shards that hold it."""

    placed: list[Placed]
    problems: list[dict[str, str]]
    split: Split
    plans: list[ShardPlan]

    @property
    def num_captions(self) -> int:
        return count_captions([sample for sample, _ in self.placed])

    def of(self, split: str) -> list[Placed]:
        """The samples of a split, in the order of its shards."""
        return [placed for plan in self.plans if plan.split == split for placed in plan.samples]


def prepare(options: Options) -> str:
    """Bring the output to completion, and return its summary.

    Raises:
        ValueError: an option is impossible; nothing is recognised in the source; it has changed; more than half of its
            items are bad.
        OSError: something cannot be read or written.
    """
    check_options(options)
    source = open_source(options.source, options.layout, options.captions)
    with kept_settings(options, describe_source(options.source, source)):
        summary = options.output / SUMMARY
        if not summary.exists():
            write_whole(summary, _prepare(options, source).encode("utf-8", "backslashreplace"))
        remove_parts(options.output)
        return summary.read_text(encoding="utf-8")


def _prepare(options: Options, source: Source) -> str:
    """Everything but the summary's file."""
    images, policy = _choose_images(options)
    found = _find(options, source, policy)
    write_shards(options.output, found.plans, found.num_captions, {"crop": policy.describe(), "versions": versions()})
    words, tokenizer = _find_tokenizer(options, [text for sample, _ in found.of(TRAIN) for text in sample.texts])
    if options.autoencoder:
        _write_latents(options, found.plans, words)
    _write_mixtures(options, found)
    prompts = choose_prompts([sample for sample, _ in found.of(HELD_OUT) or found.of(TRAIN)])
    measured = _write_config(options, images, tokenizer.vocab_size, words, prompts, bool(found.of(HELD_OUT)))
    _write_sheet(options, found)
    kept = [sample for split in (TRAIN, HELD_OUT) for sample, _ in found.of(split)]
    lengths = [len(tokenizer.encode(text)) for sample in kept for text in sample.texts]
    return write_summary(
        Outcome(
            source=str(options.source),
            kind=source.kind,
            unread=source.unread,
            num_items=len(source.items),
            statistics=measure(kept, found.problems, lengths),
            num_groups=len(found.split.duplicates),
            num_near=sum(map(len, found.split.duplicates)),
            num_dropped=sum(found.split.is_dropped),
            train=count_kinds(found.plans, TRAIN),
            held_out=count_kinds(found.plans, HELD_OUT),
            pictures=_describe_pictures(images, found.of(TRAIN)),
            vocab_size=tokenizer.vocab_size,
            capacities=measured.capacities,
            padding=measured.padding,
            next_commands=_next_commands(options, prompts),
        )
    )


def _choose_images(options: Options) -> tuple[Images, CropPolicy]:
    """How the model sees pictures, and how they are cut for it."""
    if options.autoencoder is None:
        side = options.size
        return Images(channels=3, shape=(side, side), patch=(options.patch,) * 2, codec="pixels"), options.policy(1)
    import torch

    from oneflow_dist.model.autoencoder import load_autoencoder

    autoencoder = load_autoencoder(options.autoencoder, "cpu", torch.float32)
    policy, side = options.policy(autoencoder.downsample), options.size // autoencoder.downsample
    return Images(channels=autoencoder.channels, shape=(side, side), patch=(2, 2), codec=options.autoencoder), policy


def _find(options: Options, source: Source, policy: CropPolicy) -> Found:
    """Read all items, and decide which samples go where."""
    folder = options.output
    parts = list_parts(folder, len(source.items))
    prepare_parts(parts, source.items, policy, options.workers)
    placed: list[Placed] = []
    problems: list[dict[str, str]] = []
    for part in parts:
        samples, of_part = part.read()
        placed += [(sample, part.read_png) for sample in samples]
        problems += of_part
    write_whole(folder / PROBLEMS, _encode_lines(problems))
    _check_problems(folder / PROBLEMS, problems, len(source.items))
    split = split_samples([sample for sample, _ in placed], options.held_out, options.seed, options.drop_duplicates)
    write_whole(folder / DUPLICATES, _encode_lines({"names": names} for names in split.duplicates))
    ways = zip(placed, split.is_held_out, split.is_dropped, strict=True)
    plans = plan_shards([(one, is_held_out) for one, is_held_out, is_dropped in ways if not is_dropped])
    return Found(placed=placed, problems=problems, split=split, plans=plans)


def _check_problems(path: Path, problems: Sequence[dict[str, str]], num_items: int) -> None:
    if len(problems) > MAX_BAD * num_items:
        shown = "; ".join(f"{problem['name']}: {problem['reason']}" for problem in problems[:REASONS_SHOWN])
        raise ValueError(
            f"{path}: {len(problems)} of {num_items} items are bad ({shown}); is it the right folder? mend them, or "
            "move them away, and name a new output folder"
        )


def _find_tokenizer(options: Options, texts: Sequence[str]) -> tuple[str, Tokenizer]:
    """The one that was named, or one that is learned from the texts: its path and itself."""
    name = options.tokenizer or "bytes"
    if options.tokenizer is None and texts:
        path = options.output / WORDS
        if not path.exists():
            size = options.vocab_size or default_vocab_size(sum(map(len, texts)))
            partial = path.with_name(f"{path.name}.partial")
            write_ranks(partial, train_ranks(list(texts), size))
            partial.rename(path)
        name = str(path)
    return name, load_tokenizer(name)


def _write_latents(options: Options, plans: Sequence[ShardPlan], words: str) -> None:
    """What the autoencoder makes of the pictures in the shards."""
    from oneflow_dist.precompute.run import Precompute
    from oneflow_dist.precompute.settings import Options as PrecomputeOptions
    from oneflow_dist.precompute.settings import load_tools

    assert options.autoencoder is not None
    tools = load_tools(
        PrecomputeOptions(
            autoencoder=options.autoencoder,
            tokenizer=words,
            size=options.size,
            max_aspect=options.max_aspect,
            allow_missing_text=True,
            allow_missing_picture=True,
        )
    )
    shards = [options.output / plan.name for plan in plans]
    Precompute(tools, shards, options.output / LATENTS, max_bad=0.0, decode_threads=1).run()


def _write_mixtures(options: Options, found: Found) -> None:
    shards = options.output / LATENTS if options.autoencoder else options.output
    for name, split in ((MIXTURE, TRAIN), (HELD_OUT_MIXTURE, HELD_OUT)):
        if found.of(split):
            mixture = write_mixture(shards, found.plans, split, found.num_captions)
            write_whole(options.output / name, mixture.encode())


def _write_config(
    options: Options, images: Images, vocab_size: int, words: str, prompts: Sequence[str], has_held_out: bool
) -> Measured:
    """Write the config: once with room for all, to measure samples by it, and once with the room that they need."""
    from oneflow_dist.prepare.measured import fit_config

    path = options.output / CONFIG
    return fit_config(path, options, images, vocab_size, words, prompts, has_held_out)


def _write_sheet(options: Options, found: Found) -> None:
    train, held_out = found.of(TRAIN), found.of(HELD_OUT)
    title = f"{options.name}: {len(train):,} samples to train on, {len(held_out):,} held out; as the model sees them"
    if (sheet := draw_sheet(train, title)) is not None:
        write_whole(options.output / SHEET, sheet)


def _describe_pictures(images: Images, train: Sequence[Placed]) -> str:
    sizes = {picture.cut for sample, _ in train for picture in sample.pictures}
    if not sizes:
        return "no pictures"
    height, width = images.shape
    rows = height // images.patch[0] * (width // images.patch[1])
    made_of = "pixels" if images.codec == "pixels" else f"latents of {images.codec}"
    return f"pictures cut to {len(sizes)} size{'s' * (len(sizes) > 1)}, {rows} rows of {made_of} each"


def _next_commands(options: Options, prompts: Sequence[str]) -> list[str]:
    text = prompts[0].removesuffix("<|image|>")
    quoted = "'" + text.replace("'", "'\\''") + "'"
    way = " --paint" if prompts[0].endswith("<|image|>") else ""
    return [
        f"oneflow train {options.output / CONFIG}",
        f"oneflow sample runs/{options.name} samples --text {quoted}{way} --count 4",
    ]


def _encode_lines(entries: Iterable[dict[str, Any]]) -> bytes:
    text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    return text.encode("utf-8", "backslashreplace")
