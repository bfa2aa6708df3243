"""From an item to the prompt of a canvas: fields filled in, pictures as the model sees them."""

from __future__ import annotations

import re
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


def build_prompt(template: str, item: Item, tokenizer: Tokenizer, config: Config) -> Prompt:
    """What `blank_canvas` takes.

    Args:
        template: `{NAME}` stands for a field, `{picture}` for the item's picture, `{picture_1}` for one of several,
            counted from 0; the token of a role begins a turn; pieces and holes are written as in tools/sample.py.

    Raises:
        ValueError: the item has no such field or picture, or the model cannot see one.
    """
    roles = {f"<|{role}|>": token for role, token in tokenizer.role_of.items()}
    prompt: list[Any] = []
    text = ""
    for part in PART.split(template):
        if found := PICTURE.fullmatch(part):
            picture = picture_at(found, item)
            prompt += [*_encode(text, tokenizer), *encode_photo(picture.read(), config, picture.name, is_told=False)]
            text = ""
        elif part in roles:
            prompt += [*_encode(text, tokenizer), roles[part]]
            text = ""
        elif part.startswith("{"):
            text += fill(part, item)
        elif part.startswith("<|"):
            prompt += [*_encode(text, tokenizer), *parse_prompt(part, tokenizer)]
            text = ""
        else:
            text += part
    return [*prompt, *_encode(text, tokenizer)]


def build_question(template: str, item: Item) -> tuple[Question, bool]:
    """The same for a choice by bounds, and whether it is a turn of the user.

    Raises:
        ValueError: the item has no such field or picture, or the template asks for a piece.
    """
    text, pictures = "", list[bytes]()
    for part in PART.split(template):
        if found := PICTURE.fullmatch(part):
            pictures.append(picture_at(found, item).read())
            text += PLACE
        elif part.startswith("{"):
            text += fill(part, item)
        elif part.startswith("<|") and part not in TURNS:
            raise ValueError(f"item {item.key}: {part} in the prompt of a choice, which only reads; take generation")
        elif part not in TURNS:
            text += part
    return Question(text, tuple(pictures)), any(turn in template for turn in TURNS)


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


def _encode(text: str, tokenizer: Tokenizer) -> list[int]:
    """Text between marks, as one: merges go over the ends of fields. What looks like a mark in a field stays text."""
    return tokenizer.encode(text) if text else []
