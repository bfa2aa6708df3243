"""Benchmarks in small, laid out as the suites of the paper name them: the files of their authors with made content."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from oneflow_dist.evaluation.answers import PICTURES, Answer, Part, encode_png
from oneflow_dist.evaluation.items import Item
from oneflow_dist.evaluation.suite import Suite, load_suite

SUITES = Path(__file__).parents[2] / "configs/suites"
PLACE = "data/benchmarks"  # in those suites
COLOURS = ("red", "green", "blue", "yellow", "black", "white")
IDS = (42, 73, 74, 133, 136, 139, 143, 164, 192, 196, 208, 241)  # of the pictures, a dozen
SPLITS = ("test", "val", "restval", "train")
QUESTIONS = ("What colour is it?", "Is it red?")
SIDE = 64


def make_benchmarks(root: Path) -> None:
    """All benchmarks below `root`, but no weights."""
    make_coco(root / "coco")
    make_vqa(root / "vqav2", "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json")
    make_vqa(root / "okvqa", "OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json")
    for kind in ("random", "popular", "adversarial"):
        make_pope(root / f"pope/coco_pope_{kind}.json")
    make_prompts(root)
    for name in ("gqa/testdev_balanced.jsonl", "vizwiz/val.jsonl", "textvqa/val.jsonl"):
        make_items(root / name)


def suite_at(name: str, root: Path) -> Suite:
    """A suite of the project with what `root` holds instead of what it names."""
    path = root / f"{name}.toml"
    path.write_text((SUITES / path.name).read_text(encoding="utf-8").replace(PLACE, str(root)), encoding="utf-8")
    return load_suite(path)


def colour(image_id: int) -> str:
    """What a picture shows."""
    return COLOURS[IDS.index(image_id) % len(COLOURS)]


def file_name(image_id: int) -> str:
    """Of a picture, as COCO calls it."""
    return f"COCO_val2014_{image_id:012d}.jpg"


def captions(image_id: int) -> list[str]:
    """Five."""
    kinds = (
        "A {} square.",
        "A picture of a {} square.",
        "There is something {}.",
        "All is {}.",
        "A {} thing in a {} room.",
    )
    return [kind.replace("{}", colour(image_id)) for kind in kinds]


def make_coco(folder: Path) -> None:
    """Pictures, captions JSON, and Karpathy's splits of them, three pictures each."""
    (folder / "val2014").mkdir(parents=True)
    for number, image_id in enumerate(IDS):
        picture = Image.new("RGB", (SIDE + 16 * (number % 2), SIDE), "grey")
        picture.paste(colour(image_id), (8, 8, SIDE - 8, SIDE - 8))
        picture.save(folder / "val2014" / file_name(image_id))
    images = [{"license": 1, "id": image_id, "file_name": file_name(image_id)} for image_id in IDS]
    rows = [
        {"image_id": image_id, "caption": text}
        for text_of in range(5)
        for image_id in IDS
        for text in captions(image_id)[text_of : text_of + 1]
    ]
    annotations = [{"id": number, **row} for number, row in enumerate(rows)]
    write(folder / "annotations/captions_val2014.json", {"info": {}, "images": images, "annotations": annotations})
    split = [
        {
            "filepath": "val2014",
            "filename": file_name(image_id),
            "cocoid": image_id,
            "imgid": number,
            "split": SPLITS[number % 4],
            "sentences": [{"raw": text, "tokens": text.lower().split()} for text in captions(image_id)],
        }
        for number, image_id in enumerate(IDS)
    ]
    write(folder / "dataset_coco.json", {"dataset": "coco", "images": split})


def make_vqa(folder: Path, questions: str, annotations: str) -> None:
    """Two questions about each picture, with ten answers each."""
    asked, answered = [], []
    for image_id in IDS:
        truths = (colour(image_id), "yes" if colour(image_id) == "red" else "no")
        for number, (question, truth) in enumerate(zip(QUESTIONS, truths, strict=True)):
            ids = {"image_id": image_id, "question_id": image_id * 1000 + number}
            asked.append({**ids, "question": question})
            people = [{"answer": truth if person < 8 else "none", "answer_id": person + 1} for person in range(10)]
            answered.append({**ids, "answer_type": ("other", "yes/no")[number], "answers": people})
    write(folder / questions, {"data_subtype": "val2014", "questions": asked})
    write(folder / annotations, {"data_subtype": "val2014", "annotations": answered[::-1]})


def make_pope(path: Path) -> None:
    """Two questions about each picture, of which one is right."""
    rows = []
    for image_id in IDS:
        other = COLOURS[(IDS.index(image_id) + 1) % len(COLOURS)]
        for thing, label in ((colour(image_id), "yes"), (other, "no")):
            text = f"Is there a {thing} square in the image?"
            rows.append({"question_id": len(rows) + 1, "image": file_name(image_id), "text": text, "label": label})
    write_lines(path, rows)


def make_prompts(root: Path) -> None:
    """The prompts of DPG-Bench, GenEval and WISE."""
    for name in ("12", "COCOval2014000000000042", "partiprompts7"):
        path = root / f"dpg_bench/prompts/{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"A long prompt called {name}, with a café in it.\n", encoding="utf-8")
    tags = ("single_object", "counting", "colors")
    rows = [{"tag": tag, "include": [{"class": "bench", "count": 1}], "prompt": f"a photo of {tag}"} for tag in tags]
    write_lines(root / "geneval/evaluation_metadata.jsonl", rows)
    for first, name in ((1, "cultural_common_sense"), (401, "spatio-temporal_reasoning"), (701, "natural_science")):
        wise = [
            {
                "prompt_id": first + number,
                "Prompt": f"A thing of {name}, number {number}",
                "Explanation": "The model should draw it",
                "Category": name,
                "Subcategory": f"part {number}",
            }
            for number in range(2)
        ]
        write(root / f"wise/{name}.json", wise)


def make_items(path: Path) -> None:
    """Questions as lines of items, with pictures beside them."""
    rows = []
    for image_id in IDS[:3]:
        picture = path.parent / f"images/{image_id}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIDE, SIDE), colour(image_id)).save(picture)
        references = [colour(image_id)] * 10
        rows.append(
            {
                "key": str(image_id),
                "question": QUESTIONS[0],
                "references": references,
                "pictures": [f"images/{picture.name}"],
            }
        )
    write_lines(path, rows)


def write(path: Path, value: object) -> None:
    """A JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_lines(path: Path, rows: Sequence[object]) -> None:
    """A file of lines of JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def text_answers(items: Sequence[Item]) -> list[Answer]:
    """A text to each item, "said KEY"."""
    return [Answer(key=item.key, number=0, parts=(Part(text=f"said {item.key}"),)) for item in items]


def picture_answers(items: Sequence[Item], folder: Path, repeats: int, side: int = 8) -> list[Answer]:
    """Answers of one picture each, no two alike."""
    (folder / PICTURES).mkdir(parents=True, exist_ok=True)
    found = []
    for place, item in enumerate(items):
        for number in range(repeats):
            name = f"{item.key}.{number}-0.png"
            shade = (10 * place, 50 * number, 7)
            (folder / PICTURES / name).write_bytes(encode_png(Image.new("RGB", (side, side), shade)))
            found.append(Answer(key=item.key, number=number, parts=(Part(image=name),), folder=folder / PICTURES))
    return found
