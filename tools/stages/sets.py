"""What the small chain of stages trains on: text, captioned pictures, counting documents and conversations."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterable, Iterator
from typing import TypeVar

import numpy as np

from oneflow_dist.containers import ShardRecord
from oneflow_dist.data.decoding import read_fields, read_segments
from oneflow_dist.data.shards import list_shards
from tools.digits.grammar import CAPTIONS, WORDS, count_up, load_split
from tools.shards import read_records
from tools.stages.conversations import (
    SYSTEM,
    Files,
    Parts,
    count_from,
    count_pictures,
    count_row,
    describe,
    draw,
    lay,
    list_row,
    talk,
)
from tools.stages.pictures import SIDE, SMALL, cut_boxes, enlarge, shrink, turn
from tools.stages.shapes import Asked, ask_vqa, caption_of
from tools.stages.texts import ask_of, cut_documents
from tools.vqa.make import SPLITS, find_package

T = TypeVar("T")

ROWS = 32768  # of digits; of those held out 2048
COUNTS = 4096  # counting documents; of those held out an eighth
SEVERAL = 0.05  # of easy-VQA's pictures all questions are one conversation; else each is its own


def make_sets(split: str, text: str, pictures: str, nlvr: str) -> Iterator[tuple[str, Iterable[Files]]]:
    """The sets of a split with their names; what is held out comes from sections, pictures and digits of its own."""
    is_held_out = split == "heldout"
    theirs = "val" if is_held_out else "train"
    sections = [dict(read_fields(record)) for record in read_records(text.format(theirs))]
    yield "text", ({"txt": document} for fields in sections for document in cut_documents(fields))
    yield "answers", _shuffled(talk([each]) for fields in sections for each in ask_of(fields))

    images, labels = load_split(split)
    rngs = np.random.default_rng([0, is_held_out]).spawn(7)  # a set's samples do not depend on how many another has
    captions = [CAPTIONS[rngs[0].integers(len(CAPTIONS))].format(WORDS[label]) for label in labels]
    asked = ask_vqa(find_package("tools/stages/make.py"), SPLITS[split])
    said = [(picture, caption) for picture, turns in asked if (caption := caption_of(turns))]
    named = [_read_pair(record) for record in read_records(pictures.format(theirs))]
    drawn = [(shrink(picture, SIDE), caption) for picture, caption in said]
    digits = [(enlarge(image, SIDE), caption) for image, caption in zip(images, captions, strict=True)]
    read = [(enlarge(image, SMALL), caption) for image, caption in zip(images, captions, strict=True)]
    yield "named", _pairs(named)
    yield "digits", _pairs(digits)
    ways = range(1 if is_held_out else 8)  # a shape keeps its name
    laid = _shuffled(itertools.product(drawn, ways))
    yield "drawn", _pairs((turn(picture, way), caption) for (picture, caption), way in laid)
    num_rows, num_counts = (ROWS // 16, COUNTS // 8) if is_held_out else (ROWS, COUNTS)
    yield "listed", (list_row(images, labels, rngs[2]) for _ in range(num_rows // 2))
    yield "count", (lay(count_pictures(count_up(rngs[1]), images, labels, rngs[1])) for _ in range(num_counts))

    yield "vqa", _ask_each(asked, is_held_out)
    yield "nlvr", _shuffled(_ask_nlvr(nlvr, is_held_out))
    yield "rows", (count_row(images, labels, rngs[6], is_held_out) for _ in range(num_rows))
    yield "describe", (describe(*pair, rngs[3]) for pair in _shuffled(named + drawn + read))
    counted = [count_from(images, labels, rngs[4]) for _ in range(num_counts // 2)]
    yield "draw", _shuffled([draw(*pair, rngs[5]) for pair in named + drawn + digits] + counted)


def _read_pair(record: ShardRecord) -> tuple[bytes, str]:
    text = next((segment.text for segment in read_segments(record, {}) if segment.text), None)
    if text is None or "png" not in record.files:
        raise ValueError(f"sample {record.key}: not a PNG with its caption; name shards of such pairs")
    return shrink(record.files["png"], SIDE), text


def _pairs(pairs: Iterable[tuple[bytes, str]]) -> Iterator[Files]:
    return ({"png": picture, "txt": caption} for picture, caption in pairs)


def _ask_each(asked: Asked, is_held_out: bool) -> Iterator[Files]:
    """Every question of easy-VQA's split; in training the picture lies in any of 8 ways, a held-out one is as it is."""
    rng, groups = random.Random(0), []
    for large, turns in asked:
        picture, is_one = shrink(large, SIDE), not is_held_out and rng.random() < SEVERAL
        groups += [(picture, group) for group in ([turns] if is_one else [[each] for each in turns])]
    for picture, group in _shuffled(groups):
        way = 0 if is_held_out else rng.randrange(8)
        (question, answer), *more = group
        yield talk([([turn(picture, way), question], answer), *more], SYSTEM if rng.random() < 0.1 else "")


def _ask_nlvr(pattern: str, is_held_out: bool) -> Iterator[Files]:
    """Whether sentences are true of three boxes; presentations do not span shards, so the last shard is held out."""
    shards = list_shards("nlvr", pattern)
    if len(shards) < 2:
        raise ValueError(f"--nlvr: {pattern} is one shard; name several, since the last one is held out")
    for record in itertools.chain.from_iterable(map(read_records, shards[-1:] if is_held_out else shards[:-1])):
        fields = read_fields(record)
        asked: Parts = [*cut_boxes(record.files["png"]), f"is this true? {fields['sentence']}"]
        yield talk([(asked, str(fields["label"]).lower())])


def _shuffled(samples: Iterable[T]) -> list[T]:
    """In another order, the same in every call: any part of a set is like all of it."""
    samples = list(samples)
    random.Random(0).shuffle(samples)
    return samples


def texts_of(files: Files) -> list[str]:
    """All that a tokenizer will be given of a sample."""
    fields = json.loads(files.get("json", "{}"))
    contents = [message["content"] for message in fields.get("messages", [])]
    parts = [part for content in contents for part in ([{"text": content}] if isinstance(content, str) else content)]
    texts = [part["text"] for part in [*parts, *fields.get("segments", [])] if "text" in part]
    return [*texts, str(files["txt"])] if "txt" in files else texts
