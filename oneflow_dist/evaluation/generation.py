"""Answers to a suite, group by group: any number of processes, killed and started again, write the same files."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from oneflow_dist.bars import bar
from oneflow_dist.canvas import blank_canvas
from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import Tokenizer
from oneflow_dist.evaluation.answers import PICTURES, Answer, Part, write_line
from oneflow_dist.evaluation.asking import Asker
from oneflow_dist.evaluation.items import Item
from oneflow_dist.evaluation.prompts import build_prompt, build_question
from oneflow_dist.evaluation.recording import States, parts_of, write_pictures
from oneflow_dist.evaluation.suite import TaskConfig, config_of
from oneflow_dist.files import claim, naming, write_whole
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.sampler import generate_steps

Document = tuple[int, Item, int]  # its number in the task, its item, and which of the repeats it is


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Documents that are written together: what else is in a forward changes last bits, so groups never change."""

    task: str
    config: TaskConfig
    number: int
    documents: tuple[Document, ...]

    def path(self, folder: Path) -> Path:
        """The file of its answers, which is there when all of them are."""
        return folder / self.task / f"{self.number:06d}.jsonl"


@dataclass(frozen=True, slots=True)
class Respondent:
    """Who is asked."""

    model: OneFlow
    config: Config
    tokenizer: Tokenizer


def list_groups(name: str, task: TaskConfig, items: Sequence[Item]) -> list[Group]:
    """All documents of a task in their groups."""
    documents = [(i * task.repeats + r, item, r) for i, item in enumerate(items) for r in range(task.repeats)]
    starts = range(0, len(documents), task.group)
    return [
        Group(task=name, config=task, number=number, documents=tuple(documents[first : first + task.group]))
        for number, first in enumerate(starts)
    ]


def write_answers(respondent: Respondent, groups: Sequence[Group], folder: Path, rank: int, num_ranks: int) -> None:
    """Write every group that is not there; returns when all are, whoever wrote them.

    Processes need not know of each other: each claims the next group that nobody has, beginning at a place of its own,
    and at the end waits for the others' last ones, to take over those of the dead.

    Raises:
        ValueError: an item cannot be asked.
    """
    for task in dict.fromkeys(group.task for group in groups):
        (folder / task / PICTURES).mkdir(parents=True, exist_ok=True)
    first = rank * len(groups) // num_ranks
    order = [*groups[first:], *groups[:first]]
    with bar(total=len(groups), unit="group", desc="answers", disable=rank > 0) as shown:
        for is_waiting in (False, True):
            for group in order:
                claimed = claim(group.path(folder), wait=is_waiting)
                if claimed is not None:
                    with claimed:
                        shown.set_postfix_str(group.task, refresh=False)
                        lines = write_group(respondent, group, folder)
                        with naming(claimed.partial):
                            claimed.file.write("".join(lines).encode())
                        claimed.commit()
                shown.update(sum(other.path(folder).exists() for other in groups) - shown.n)


def write_group(respondent: Respondent, group: Group, folder: Path) -> list[str]:
    """The lines of a group's answers; their pictures, and the seconds of each step, are in their files by then."""
    if group.config.answer == "bound":
        return [write_line(answer) for answer in choose_answers(respondent, group)]
    return [write_line(answer) for answer in generate_answers(respondent, group, folder)]


def generate_answers(respondent: Respondent, group: Group, folder: Path) -> Iterator[Answer]:
    """Write the documents of a group, all together."""
    task, tokenizer = group.config, respondent.tokenizer
    config = config_of(task, respondent.config)
    canvases, steps, rows = [], [0] * len(group.documents), [0] * len(group.documents)
    for number, item, _ in group.documents:
        prompt = build_prompt(task.prompt or item.prompt, item, tokenizer, config)
        canvases.append(blank_canvas(prompt, tokenizer, config.modality, task.seed, number))
        if canvases[-1].num_rows > config.sampling.max_rows:
            raise ValueError(
                f"task.{group.task}: item {item.key} takes {canvases[-1].num_rows} rows alone, more than "
                f'sampling.max_rows ({config.sampling.max_rows}); write "max_rows=N" into its sampling'
            )
    states, seconds, begin = States(canvases), [], time.perf_counter()
    for step in generate_steps(respondent.model, canvases, config, tokenizer):
        seconds.append(round(time.perf_counter() - begin, 4))
        for place in step.changes:
            steps[place] = step.number
            rows[place] += canvases[place].num_rows
        if task.keeps_states:
            states.take(step.number, step.changes)
    own = group.path(folder).parent
    write_whole(own / f"{group.number:06d}.seconds.json", json.dumps(seconds).encode())
    for place, ((_, item, repeat), canvas) in enumerate(zip(group.documents, canvases, strict=True)):
        parts = parts_of(canvas, tokenizer, f"{item.key}.{repeat}")
        write_pictures(canvas, parts, own / PICTURES)
        if task.keeps_states:
            states.write(place, parts, own / PICTURES)
        yield Answer(
            key=item.key,
            number=repeat,
            parts=parts,
            steps=steps[place],
            rows=rows[place],
            hit_cap=canvas.hit_cap,
        )


def choose_answers(respondent: Respondent, group: Group) -> Iterator[Answer]:
    """Of each item's `choices` the one whose text has the least bound."""
    config = config_of(group.config, respondent.config)
    for _, item, repeat in group.documents:
        choices = item.fields.get("choices") or [*group.config.choices]
        if not isinstance(choices, list) or not choices:
            raise ValueError(f"task.{group.task}: item {item.key} has no choices; take generation instead of bound")
        question, has_turns = build_question(group.config.prompt or item.prompt, item)
        asker = Asker(model=respondent.model, config=config, tokenizer=respondent.tokenizer, has_turns=has_turns)
        best = asker.choose(question, [str(choice) for choice in choices])
        yield Answer(key=item.key, number=repeat, parts=(Part(text=str(choices[best])),))
