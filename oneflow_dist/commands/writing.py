"""Documents as all ranks write them: dealt out, followed step by step, and gathered by the first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch.distributed as dist

from oneflow_dist.bars import bar
from oneflow_dist.canvas import Canvas, Prompt, blank_canvas
from oneflow_dist.commands.film import Film, join_films
from oneflow_dist.commands.sample_files import append_lines, change_line, prompt_line
from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.files import naming
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.runtime import is_main
from oneflow_dist.sampler import Step, generate_steps

Line = tuple[int, int, str]  # of steps.jsonl: its step (0: the prompt), the number of its document, and what it says


@dataclass(kw_only=True)
class Written:
    """What one rank has written, or all of them."""

    documents: dict[int, Canvas]  # by their numbers
    num_rows: int = 0  # that the model computed
    lines: list[Line] = field(default_factory=list)  # that are not in the file yet
    film: Film = field(default_factory=Film)


def write(
    model: OneFlow,
    prompts: Sequence[Prompt],
    config: Config,
    tokenizer: Tokenizer,
    seed: int,
    count: int,
    name: str = "generating",
    steps_file: Path | None = None,
    has_film: bool = False,
) -> Written:
    """Write `count` documents from each prompt: on the first rank all of them, on the others their own.

    Each rank takes every so manieth. What is random about a document depends on the seed and its number alone.

    Args:
        name: of the bar.
        steps_file: gets its lines while they come; those of several ranks at the end.
        has_film: whether states are kept on the way.
    """
    own = Written(
        documents={
            index: blank_canvas(prompts[index // count], tokenizer, config.modality, seed, index)
            for index in range(dist.get_rank(), len(prompts) * count, dist.get_world_size())
        }
    )
    numbers, canvases, last = [*own.documents], [*own.documents.values()], 0
    if steps_file is not None:
        lines = [(0, index, prompt_line(canvas, index, tokenizer)) for index, canvas in own.documents.items()]
        _add_lines(own, lines, steps_file)
    if has_film:
        own.film.take(0, own.documents)
    for step in _with_bar(generate_steps(model, canvases, config, tokenizer), canvases, name):
        own.num_rows, last = own.num_rows + step.num_rows, step.number
        if steps_file is not None:
            _add_lines(own, lines_of(step, numbers, tokenizer), steps_file)
        if has_film:
            own.film.take(last, own.documents)
    if has_film:
        own.film.take(last, own.documents, is_last=True)
    return _gather(own, steps_file)


def lines_of(step: Step, numbers: Sequence[int], tokenizer: Tokenizer) -> list[Line]:
    """A line for each document that a step changed; `numbers` are those of the documents that were generated."""
    changes = [(numbers[number], change) for number, change in step.changes.items()]
    return [(step.number, index, change_line(step.number, change, index, tokenizer)) for index, change in changes]


def _add_lines(own: Written, lines: list[Line], steps_file: Path) -> None:
    """Into the file, or, where other ranks have some too, aside."""
    if dist.get_world_size() > 1:
        own.lines += lines
    else:
        _append(lines, steps_file)


def _append(lines: list[Line], steps_file: Path) -> None:
    with naming(steps_file):
        append_lines(steps_file, [text for _, _, text in sorted(lines)])


def _gather(own: Written, steps_file: Path | None) -> Written:
    """On the first rank what all have written; on the others their own."""
    if dist.get_world_size() == 1:
        return own
    parts: list[Written] | None = [own] * dist.get_world_size() if is_main() else None
    dist.gather_object(own, parts)
    if parts is None:
        return own
    if steps_file is not None:
        _append([line for part in parts for line in part.lines], steps_file)
    return Written(
        documents=dict(sorted(document for part in parts for document in part.documents.items())),
        num_rows=sum(part.num_rows for part in parts),
        film=join_films([part.film for part in parts]) if own.film.states else own.film,
    )


def _with_bar(steps: Iterator[Step], canvases: list[Canvas], name: str) -> Iterator[Step]:
    """The steps, with a bar that ends full: its total is what can be left."""
    with bar(unit="step", desc=name, disable=not is_main()) as shown:
        for step in steps:
            shown.total = step.number + step.steps_left
            there, expected = sum(len(c.tokens) for c in canvases), sum(c.expected_length for c in canvases)
            shown.set_postfix_str(f"{there} of about {expected:.0f} tokens", refresh=False)
            shown.update()
            yield step
