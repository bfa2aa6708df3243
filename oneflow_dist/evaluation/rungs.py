"""Answers whose figures are known to be bad or good, to see whether a score tells them apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from oneflow_dist.evaluation.answers import PICTURES, Answer, Part, encode_png, write_line
from oneflow_dist.evaluation.items import Item, picture_file
from oneflow_dist.evaluation.scoring import decode
from oneflow_dist.evaluation.suite import TaskConfig
from oneflow_dist.files import write_whole

Made = tuple[tuple[Part, ...], list[bytes]]  # parts, and the PNGs of those that are pictures


def shuffle(answers: Sequence[Answer]) -> list[Answer]:
    """The answers to other items: each gets that of the one half the set away."""
    half = len(answers) // 2
    return [
        replace(own, parts=other.parts, folder=other.folder)
        for own, other in zip(answers, [*answers[half:], *answers[:half]], strict=True)
    ]


def write_data(task: TaskConfig, items: Sequence[Item], folder: Path) -> list[Answer]:
    """The held-out data itself as answers: documents of the task's `held_out`, or what items have as their truth.

    Raises:
        ValueError: there is neither.
    """
    (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    asked = [(item, number) for item in items for number in range(task.repeats)]
    documents = [*read_documents(task.held_out)] if task.held_out else [own_answer(task, item) for item, _ in asked]
    answers = []
    for place, (item, number) in enumerate(asked):
        parts, pictures = documents[place % len(documents)]
        names = iter([f"{item.key}.{number}-{n}.png" for n in range(len(pictures))])
        named = tuple(replace(part, image=next(names)) if part.image else part for part in parts)
        for part, content in zip([part for part in named if part.image], pictures, strict=True):
            write_whole(folder / PICTURES / part.image, content)
        answers.append(Answer(key=item.key, number=number, parts=named, folder=folder / PICTURES))
    write_whole(folder / "000000.jsonl", "".join(map(write_line, answers)).encode())
    return answers


def own_answer(task: TaskConfig, item: Item) -> Made:
    """The picture of an item that asks for one, else its first reference."""
    template = task.prompt or item.prompt
    if "<|image|>" in template and item.pictures:
        picture = decode(item.pictures[0].read(), item.pictures[0].name)
        return (Part(image="own"),), [encode_png(picture)]
    value = item.fields.get(task.truth)
    if not value:
        raise ValueError(f"item {item.key}: neither a picture nor {task.truth} is known; name shards in held_out")
    return (Part(text=str(value[0] if isinstance(value, list) else value)),), []


def read_documents(pattern: str) -> Iterator[Made]:
    """The documents of shards, or what the assistant says in conversations."""
    from oneflow_dist.data.decoding import read_fields, read_segments
    from oneflow_dist.data.shards import open_shards

    shards = open_shards("held_out", pattern)
    for index in range(len(shards)):
        record = shards.read(index)
        segments = read_segments(record, read_fields(record))
        is_talk = any(segment.role == "assistant" for segment in segments)
        parts, pictures = list[Part](), list[bytes]()
        for segment in segments:
            if is_talk and segment.role != "assistant":
                continue
            if segment.piece is None:
                parts.append(Part(text=str(segment.text).strip()))
            else:
                name = picture_file(record, segment.piece)
                pictures.append(encode_png(decode(record.files[name], name)))
                parts.append(Part(image="own"))
        yield tuple(parts), pictures
