"""The items of benchmarks, read from the files that their authors publish, with the ids that their programs ask for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oneflow_dist.evaluation.items import Item, Picture, picture_of
from oneflow_dist.evaluation.suite import OFFICIAL, TaskConfig

COPY = "copy the file again"


@dataclass(frozen=True, slots=True)
class PictureFile:
    """Reads a picture of a benchmark, which may be missing until then: who asks without pictures needs none."""

    places: tuple[Path, ...]  # where it may lie: copies of COCO name it in two ways

    @property
    def path(self) -> Path:
        """The first of its places where it is; the first of all if it is nowhere."""
        return next((path for path in self.places if path.is_file()), self.places[0])

    def __call__(self) -> bytes:
        """Its content.

        Raises:
            ValueError: it is missing.
        """
        return picture_of(self.path).read()


def read_official(task: TaskConfig) -> Iterator[Item]:
    """The items of a benchmark in the order of its own file.

    The key of each is the benchmark's id. Without `task.pictures` items have none. What `task.path` names, and the
    fields of items, `references` beside them:

        coco_captions  captions JSON of COCO: image_id, file_name, caption (the first reference). Of Karpathy's
                       dataset_*.json: split, too
        vqa            questions JSON, a comma, annotations JSON: question_id, image_id, question, answer_type. Of
                       questions alone, as of test sets: neither references nor answer_type
        pope           lines of JSON: question_id, image, question, label
        dpg            folder of prompts, a .txt each: caption
        geneval        evaluation_metadata.jsonl: caption, tag, metadata (its line as it is)
        wise           lists of prompts, with commas between them: caption, prompt_id, category, subcategory

    Raises:
        ValueError: a file is missing, is cut off or is of another benchmark, or files do not belong together.
    """
    readers = {
        "coco_captions": _read_coco,
        "vqa": _read_vqa,
        "pope": _read_pope,
        "dpg": _read_dpg,
        "geneval": _read_geneval,
        "wise": _read_wise,
    }
    try:
        yield from readers[task.source](task)
    except (KeyError, TypeError, AttributeError) as error:
        what = f"{task.path}: not what {task.source} is read from ({error!r})"
        raise ValueError(f"{what}; name the file that its authors publish, or {COPY}") from error


def annotation_paths(task: TaskConfig) -> list[Path]:
    """The files, or the folder, that `path` of an official benchmark names."""
    assert task.source in OFFICIAL, f"{task.source} is no official benchmark"
    return [Path(part.strip()) for part in task.path.split(",")]


def _read_coco(task: TaskConfig) -> Iterator[Item]:
    path = Path(task.path)
    table = _read_json(path)
    if "annotations" not in table:
        yield from _read_karpathy(task, table)
        return
    captions: dict[Any, list[str]] = {row["id"]: [] for row in table["images"]}
    for row in table["annotations"]:
        if row["image_id"] not in captions:
            raise ValueError(f"{path}: has a caption of {row['image_id']}, but no such image; {COPY}")
        captions[row["image_id"]].append(row["caption"].strip())
    for row in table["images"]:
        places = (row["file_name"],)
        yield _caption_item(task, row["id"], row["file_name"], places, captions[row["id"]])


def _read_karpathy(task: TaskConfig, table: dict[str, Any]) -> Iterator[Item]:
    for row in table["images"]:
        image_id = row["cocoid"] if "cocoid" in row else row["imgid"]  # Flickr30k's pictures have no id of COCO
        places = (f"{row.get('filepath', '.')}/{row['filename']}", row["filename"])
        references = [sentence["raw"].strip() for sentence in row["sentences"]]
        yield _caption_item(task, image_id, row["filename"], places, references, split=row["split"])


def _caption_item(
    task: TaskConfig, image_id: Any, name: str, places: tuple[str, ...], references: list[str], **more: str
) -> Item:
    if not references:
        raise ValueError(f"{task.path}: image {image_id} has no caption; {COPY}")
    fields = {"image_id": image_id, "file_name": name, "caption": references[0], "references": references, **more}
    return Item(key=str(image_id), fields=fields, pictures=_pictures(task, *places))


def _read_vqa(task: TaskConfig) -> Iterator[Item]:
    questions, *annotations = annotation_paths(task)
    if len(annotations) > 1:
        raise ValueError(f"{task.path}: {1 + len(annotations)} files; name questions, or questions,annotations")
    table = _read_json(questions)
    truth: dict[Any, Any] | None = None
    if annotations:
        truth = {row["question_id"]: row for row in _read_json(annotations[0])["annotations"]}
        if alone := sorted(truth.keys() ^ {row["question_id"] for row in table["questions"]}):
            what = f"{len(alone)} questions in one file alone, as {alone[0]}"
            raise ValueError(f"{task.path}: {what}; name files of the same questions")
    subset = table.get("data_subtype", "").replace("-dev", "")  # test-dev2015 is a part of the pictures of test2015
    for row in table["questions"]:
        fields = {key: row[key] for key in ("question_id", "image_id", "question")}
        if truth is not None:
            found = truth[row["question_id"]]
            fields["references"] = [answer["answer"] for answer in found["answers"]]
            fields["answer_type"] = found["answer_type"]
        name = f"{str(row['image_id']).zfill(12)}.jpg"
        yield Item(key=str(row["question_id"]), fields=fields, pictures=_pictures(task, f"COCO_{subset}_{name}", name))


def _read_pope(task: TaskConfig) -> Iterator[Item]:
    for number, line in _read_lines(Path(task.path)):
        row = _parse(line, f"{task.path}, line {number}")
        fields = {"question_id": row["question_id"], "image": row["image"], "question": row["text"]}
        if row["label"] not in ("yes", "no"):
            raise ValueError(f'{task.path}, line {number}: label is "{row["label"]}", not yes or no; {COPY}')
        fields |= {"label": row["label"], "references": [row["label"]]}
        yield Item(key=str(row["question_id"]), fields=fields, pictures=_pictures(task, row["image"]))


def _read_dpg(task: TaskConfig) -> Iterator[Item]:
    folder = Path(task.path)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder of prompts; copy dpg_bench/prompts of ELLA's repository there")
    for path in sorted(folder.glob("*.txt")):
        caption = path.read_text(encoding="utf-8").strip()
        if not caption:
            raise ValueError(f"{path}: has no prompt in it; {COPY}")
        yield Item(key=path.stem, fields={"caption": caption, "references": [caption]})


def _read_geneval(task: TaskConfig) -> Iterator[Item]:
    for number, line in _read_lines(Path(task.path)):
        row = _parse(line, f"{task.path}, line {number}")
        fields = {"caption": row["prompt"], "references": [row["prompt"]], "tag": row["tag"], "metadata": line}
        yield Item(key=f"{number - 1:05d}", fields=fields)


def _read_wise(task: TaskConfig) -> Iterator[Item]:
    for path in annotation_paths(task):
        for row in _read_json(path):
            fields = {"caption": row["Prompt"], "references": [row["Prompt"]], "prompt_id": row["prompt_id"]}
            fields |= {"category": row["Category"], "subcategory": row["Subcategory"]}
            yield Item(key=str(row["prompt_id"]), fields=fields)


def _pictures(task: TaskConfig, *names: str) -> tuple[Picture, ...]:
    if not task.pictures:
        return ()
    places = tuple(Path(task.pictures) / name for name in names)
    return (Picture(places[0].name, PictureFile(places)),)


def _read_json(path: Path) -> Any:
    return _parse(_read_text(path), str(path))


def _read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, from 1; not `splitlines`, which cuts at what JSON may hold in its texts."""
    for number, line in enumerate(_read_text(path).rstrip("\n").split("\n"), start=1):
        yield number, line.rstrip("\r")


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f"{path}: no such file of a benchmark; copy it there, or name another in path")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error}); {COPY}") from error


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: no whole JSON ({error}); {COPY}") from error
