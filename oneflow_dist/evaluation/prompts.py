"""From an item to the prompt of a canvas: fields filled in, pictures as the model sees them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from oneflow_dist.canvas import Prompt, parse_prompt
from oneflow_dist.config import Config
from oneflow_dist.data.conversations import PLACE
from oneflow_dist.data.tokenizer import ROLES, Tokenizer
from oneflow_dist.evaluation.asking import Question
from oneflow_dist.evaluation.items import Item, Picture
from oneflow_dist.photos import encode_photo

PART = re.compile(r"(\{\w+\}|<\|\w+\|>)")
TURNS = tuple(f"<|{role}|>" for role in ROLES)
PICTURE = re.compile(r"\{picture(?:_(\d+))?\}")


@dataclass(frozen=True, slots=True)
class Mark:
    """A token that is written out in a template."""

    token: str


def build_prompt(template: str, item: Item, tokenizer: Tokenizer, config: Config) -> Prompt:
    """What `blank_canvas` takes.

    Args:
        template: `{NAME}` stands for a field, `{picture}` for the item's picture, `{picture_1}` for one of several,
            counted from 0; the token of a role begins a turn; pieces and holes are written as in oneflow sample.

    Raises:
        ValueError: the item has no such field or picture, or the model cannot see one.
    """
    roles = {f"<|{role}|>": token for role, token in tokenizer.role_of.items()}
    prompt: list[Any] = []
    for part in read_template(template, item):
        if isinstance(part, Picture):
            prompt += encode_photo(part.read(), config, part.name, is_told=False)
        elif isinstance(part, Mark):
            prompt += [roles[part.token]] if part.token in roles else parse_prompt(part.token, tokenizer)
        else:
            prompt += tokenizer.encode(part)
    return prompt


def build_question(template: str, item: Item) -> tuple[Question, bool]:
    """The same for a choice by bounds, and whether it is a turn of the user.

    Raises:
        ValueError: the item has no such field or picture, or the template asks for a piece.
    """
    text, pictures = "", list[bytes]()
    for part in read_template(template, item):
        if isinstance(part, Picture):
            pictures.append(part.read())
            text += PLACE
        elif isinstance(part, str):
            text += part
        elif part.token not in TURNS:
            raise ValueError(
                f"item {item.key}: {part.token} in the prompt of a choice, which only reads; take generation"
            )
    return Question(text, tuple(pictures)), any(turn in template for turn in TURNS)


def read_template(template: str, item: Item) -> Iterator[str | Picture | Mark]:
    """Its parts: text, fields filled in, in one as far as nothing stands between; what a field says is no mark.

    Raises:
        ValueError: the item has no such field or picture.
    """
    text = ""
    for part in PART.split(template):
        is_mark, picture = part.startswith("<|") and PART.fullmatch(part) is not None, PICTURE.fullmatch(part)
        if is_mark or picture:
            yield from [text] if text else []
            text = ""
            yield picture_at(picture, item) if picture else Mark(part)
        else:
            text += fill(part, item) if PART.fullmatch(part) else part
    yield from [text] if text else []


def picture_at(found: re.Match[str], item: Item) -> Picture:
    """The picture that a template names."""
    number = int(found[1] or 0)
    if number >= len(item.pictures):
        raise ValueError(f"item {item.key}: {found[0]} of {len(item.pictures)} pictures; mend the task's prompt")
    return item.pictures[number]


def fill(part: str, item: Item) -> str:
    """The text of a field."""
    if part[1:-1] not in item.fields:
        known = ", ".join(item.fields) or "none"
        raise ValueError(f"item {item.key}: no field {part}; it has {known}; mend the task's prompt")
    return str(item.fields[part[1:-1]])
