"""Answers as the programs of benchmarks read them, which compute the figures that tables are made of."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from oneflow_dist.evaluation.answers import Answer, encode_png, read_png
from oneflow_dist.evaluation.items import Item, picture_of
from oneflow_dist.evaluation.prompts import PICTURE
from oneflow_dist.evaluation.suite import OFFICIAL, TaskConfig
from oneflow_dist.files import write_whole

GRID = 4  # pictures of a prompt of DPG-Bench, two by two
Files = Iterator[tuple[str, bytes]]  # names below the folder, and what is in them, one after another: sets are large


@dataclass(frozen=True, slots=True)
class Answered:
    """An item with all its answers."""

    item: Item
    answers: tuple[Answer, ...]

    @property
    def text(self) -> str:
        """Of the first: these programs take one."""
        return self.answers[0].text

    def files(self, count: int = 0) -> list[Path]:
        """Its pictures, of all answers.

        Args:
            count: as many as there must be; 0: one or more.

        Raises:
            ValueError: there are fewer or more.
        """
        found = [answer.folder / name for answer in self.answers for name in answer.images]
        if not found or (count and len(found) != count):
            what = f"item {self.item.key}: {len(found)} pictures in {len(self.answers)} answers, not {count or 'any'}"
            raise ValueError(f"{what}; set repeats = {count or 1}, with one <|image|> in the prompt")
        return found


def write_official(task: TaskConfig, items: Sequence[Item], answers: Sequence[Answer], folder: Path) -> list[Path]:
    """Write what a benchmark's program reads; returns its files.

        coco_captions  results.json, for coco-caption: [{"image_id", "caption"}]. Of a task that shows no picture,
                       nothing: programs for FID read the folder of its pictures as it is
        vqa            results.json, for VQA's program, which wants all questions of a set: [{"question_id", "answer"}]
        pope           answers.json for --ans-file of its evaluate.py, a line each: {"question", "answer"}; and
                       labels.json for --label-file: the same questions in the same order
        dpg            NAME.png: four pictures of equal sides in one, two by two; for --pic-num 4 with --resolution
                       the side of one
        geneval        00000/samples/00000.png and on, 00000/metadata.jsonl
        wise           PROMPT_ID.png

    Pictures are copied, but for those that a grid is made of. Of several answers to an item the first text is taken.

    Args:
        items: all that were asked, in the benchmark's order; one that comes again, as for each answer, is one.
        answers: at least one to each.

    Raises:
        ValueError: an item has no answer or an answer no item, or the number or the size of pictures is wrong.
    """
    assert task.source in OFFICIAL, f"{task.source} is no official benchmark"
    writers = {
        "coco_captions": _write_captions,
        "vqa": _write_vqa,
        "pope": _write_pope,
        "dpg": _write_dpg,
        "geneval": _write_geneval,
        "wise": _write_wise,
    }
    given = _join(items, answers)
    if task.source == "coco_captions" and not PICTURE.search(task.prompt):
        return []
    written = []
    for name, content in writers[task.source](given):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
        written.append(path)
    return written


def _join(items: Sequence[Item], answers: Sequence[Answer]) -> list[Answered]:
    by_key: dict[str, list[Answer]] = {item.key: [] for item in items}
    for answer in answers:
        if answer.key not in by_key:
            raise ValueError(f"answer {answer.key}: no item is called so; remove the answers and write them again")
        by_key[answer.key].append(answer)
    for key, own in by_key.items():
        if not own:
            raise ValueError(f"item {key}: has no answer; write the missing ones by oneflow evaluate")
    asked = {item.key: item for item in items}
    return [Answered(asked[key], tuple(sorted(own, key=lambda answer: answer.number))) for key, own in by_key.items()]


def _write_captions(given: Sequence[Answered]) -> Files:
    rows = [{"image_id": one.item.fields["image_id"], "caption": one.text} for one in given]
    yield "results.json", f"{_encode(rows)}\n".encode()


def _write_vqa(given: Sequence[Answered]) -> Files:
    rows = [{"question_id": one.item.fields["question_id"], "answer": one.text} for one in given]
    yield "results.json", f"{_encode(rows)}\n".encode()


def _write_pope(given: Sequence[Answered]) -> Files:
    said = [{"question": one.item.fields["question"], "answer": one.text} for one in given]
    keys = {"question_id": "question_id", "image": "image", "text": "question", "label": "label"}
    labels = [{key: one.item.fields[field] for key, field in keys.items()} for one in given]
    for name, rows in (("answers.json", said), ("labels.json", labels)):
        yield name, "".join(f"{_encode(row)}\n" for row in rows).encode()


def _write_dpg(given: Sequence[Answered]) -> Files:
    for one in given:
        pictures = [read_png(path) for path in one.files(GRID)]
        yield f"{one.item.key}.png", encode_png(_lay_grid(one.item.key, pictures))


def _lay_grid(key: str, pictures: Sequence[Image.Image]) -> Image.Image:
    side = pictures[0].width
    if any(picture.size != (side, side) for picture in pictures):
        sizes = ", ".join(f"{picture.width}x{picture.height}" for picture in pictures)
        raise ValueError(f"item {key}: pictures of {sizes}, but DPG-Bench cuts equal squares; make all as large")
    grid = Image.new("RGB", (2 * side, 2 * side))
    for number, picture in enumerate(pictures):
        grid.paste(picture, (side * (number % 2), side * (number // 2)))
    return grid


def _write_geneval(given: Sequence[Answered]) -> Files:
    for one in given:
        yield f"{one.item.key}/metadata.jsonl", f"{one.item.fields['metadata']}\n".encode()
        for number, path in enumerate(one.files()):
            yield f"{one.item.key}/samples/{number:05d}.png", picture_of(path).read()


def _write_wise(given: Sequence[Answered]) -> Files:
    for one in given:
        (path,) = one.files(1)
        yield f"{one.item.fields['prompt_id']}.png", picture_of(path).read()


def _encode(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
