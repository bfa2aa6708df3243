"""The same documents with several settings of the sampler, side by side: compare.png and compare.json."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw

from oneflow_dist.canvas import Canvas, Prompt
from oneflow_dist.commands.film import largest
from oneflow_dist.commands.sample_files import COMPARISON, claim, write_json
from oneflow_dist.commands.writing import write
from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.files import naming
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.pictures import FAINT, PAGE_WIDTH, PAPER, beside, draw_numbered, stack, text_line, with_margin
from oneflow_dist.runtime import is_main
from oneflow_dist.sampling import SamplingConfig

CELL_WIDTH = PAGE_WIDTH // 2  # pixels, where there are columns
GAP = 24
Setting = Mapping[str, Any]  # a value for each key


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What one setting gave."""

    setting: Setting
    sampling: SamplingConfig  # with it
    canvases: list[Canvas]
    seconds: float
    num_rows: int  # that the model computed


def compare(
    model: OneFlow,
    prompts: Sequence[Sequence[Prompt]],
    configs: Sequence[Config],
    settings: Sequence[Setting],
    tokenizer: Tokenizer,
    args: Any,
) -> None:
    """Write the documents of the command line with each setting, whose prompts and config are given, and the page."""
    report: dict[str, Any] = {"seed": args.seed, "compared": args.axes}
    with naming(args.output):
        if is_main():
            claim(args.output, COMPARISON, {**report, "cells": []})
    cells = []
    for own, config, setting in zip(prompts, configs, settings, strict=True):
        start = time.perf_counter()
        written = write(model, own, config, tokenizer, args.seed, args.count, name=title(setting))
        cells.append(
            Cell(
                setting=setting,
                sampling=config.sampling,
                canvases=[*written.documents.values()],
                seconds=time.perf_counter() - start,
                num_rows=written.num_rows,
            )
        )
    if not is_main():
        return
    with naming(args.output):
        write_json(args.output / COMPARISON, {**report, "cells": [describe(cell, tokenizer) for cell in cells]})
        draw_comparison(cells, args.axes, tokenizer).save(args.output / "compare.png")
    for cell in cells:
        print(f"{title(cell.setting)}: {cost(cell)}")
    print(f"wrote {len(cells)} settings of the same {len(cells[0].canvases)} documents to {args.output}/compare.png")


def title(setting: Setting) -> str:
    """As a heading says it."""
    values = {key: f"{value:g}" if isinstance(value, float) else value for key, value in setting.items()}
    return ", ".join(f"{key} = {value}" for key, value in values.items())


def cost(cell: Cell) -> str:
    """What the documents of a setting took."""
    return f"{cell.num_rows:,} rows, {cell.seconds:.1f} s"


def describe(cell: Cell, tokenizer: Tokenizer) -> dict[str, Any]:
    """A setting with its cost and the text of its documents, in which pieces have the name of their modality."""
    texts = [
        " ".join(part if isinstance(part, str) else f"[{part[0]}]" for part in canvas.parts(tokenizer))
        for canvas in cell.canvases
    ]
    return {
        "values": dict(cell.setting),
        "seconds": round(cell.seconds, 3),
        "rows": cell.num_rows,
        "documents": texts,
        "settings": dataclasses.asdict(cell.sampling),
    }


def draw_comparison(cells: Sequence[Cell], axes: Mapping[str, Sequence[Any]], tokenizer: Tokenizer) -> Image.Image:
    """A table of the cells: a row for each value of the first key, a column for each of the second."""
    first, *second = axes.items()
    headings = [title({key: value}) for key, values in second for value in values]
    width = CELL_WIDTH if headings else PAGE_WIDTH
    drawn = [draw_cell(cell, width, tokenizer) for cell in cells]
    columns = len(drawn) // len(first[1])
    rows = [
        [text_line(title({first[0]: value}), 18), *drawn[number * columns : (number + 1) * columns]]
        for number, value in enumerate(first[1])
    ]
    top = [text_line(text, 18) for text in ["", *headings]]
    return with_margin(draw_table([top, *rows] if headings else rows), GAP)


def draw_cell(cell: Cell, width: int, tokenizer: Tokenizer) -> Image.Image:
    """The documents of a setting, below what they took."""
    documents = [draw_numbered(canvas, index, tokenizer, width) for index, canvas in enumerate(cell.canvases)]
    return stack([text_line(cost(cell), 13, FAINT), beside(documents, width)], gap=8)


def draw_table(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Pictures in rows and columns, each as large as its largest, with lines between the rows."""
    widths = [largest(column)[0] for column in zip(*rows, strict=True)]
    heights = [largest(row)[1] for row in rows]
    page = Image.new("RGB", (sum(widths) + GAP * (len(widths) - 1), sum(heights) + GAP * (len(heights) - 1)), PAPER)
    draw, top = ImageDraw.Draw(page), 0
    for row, height in zip(rows, heights, strict=True):
        if top:
            draw.line([(0, top - GAP // 2), (page.width, top - GAP // 2)], fill=FAINT)
        left = 0
        for picture, width in zip(row, widths, strict=True):
            page.paste(picture, (left, top))
            left += width + GAP
        top += height + GAP
    return page
