"""A page of what was answered: of each task its figures, and some answers with what was given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from oneflow_dist.evaluation.answers import read_answers
from oneflow_dist.evaluation.items import Item
from oneflow_dist.evaluation.report import ANSWERS
from oneflow_dist.evaluation.scoring import decode
from oneflow_dist.evaluation.suite import Suite
from oneflow_dist.pictures import FAINT, INK, Box, beside, enlarge, flow, stack, text_line, with_margin

SHOWN = 8  # answers of each task
WIDTH, HEIGHT = 960, 64  # pixels of the page, and of its pictures
LONGEST = 400  # characters of a text that is shown


def draw_page(
    path: Path, suite: Suite, folder: Path, items: Mapping[str, list[Item]], report: Mapping[str, Any]
) -> None:
    """Write the page."""
    sections = []
    for name in suite.task:
        by_key = {item.key: item for item in items[name]}
        figures = report["tasks"][name]["figures"].items()
        said = [f"{key} {own['value']:.3f} [{own['low']:.3f}, {own['high']:.3f}]" for key, own in figures]
        lines = [text_line(line, 14) for line in said]
        answers = read_answers(folder / ANSWERS / name)
        step = max(1, len(answers) // SHOWN)
        rows = [draw_answer(by_key[a.key], a.folder, a.parts) for a in answers[::step][:SHOWN]]
        sections.append(stack([text_line(name, 22), beside(lines, WIDTH), beside(rows, WIDTH)], gap=14))
    with_margin(stack(sections, gap=36), 28).save(path)


def draw_answer(item: Item, folder: Path, parts: Any) -> Image.Image:
    """What was given, faint, and then what was written."""
    boxes: list[Box] = []
    for picture in item.pictures[:1]:
        boxes.append(enlarge(decode(picture.read(), picture.name), HEIGHT))
    given = str(item.fields.get("caption") or item.fields.get("question") or item.prompt)
    boxes += [(word, FAINT) for word in given[:LONGEST].split()]
    boxes.append(("|", FAINT))
    for part in parts:
        if part.image:
            with Image.open(folder / part.image) as made:
                boxes.append(enlarge(made.convert("RGB"), HEIGHT))
        else:
            boxes += [(word, INK) for word in part.text[:LONGEST].split()]
    return flow(boxes, WIDTH, HEIGHT)
