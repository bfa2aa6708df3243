"""Textbook sections as short documents, and as questions and answers in words."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

LIMIT = 640  # characters of a document: some 200 tokens of a small vocabulary
PROSE = {"title", "heading", "paragraph", "quote", "list"}
SENTENCE = re.compile(r"(?<=[.!?]) +")
TERM = re.compile(r"([^:\n]{2,40}): ([^\n]{10,200})")  # a line of a glossary


def cut_documents(fields: dict[str, Any]) -> list[str]:
    """The prose of a section in documents of at most `LIMIT` characters, cut between paragraphs.

    A longer paragraph is cut between sentences; a longer sentence is a document of its own.
    """
    parts = [part for text in _texts(fields, PROSE) for part in _parts_of(text)]
    documents: list[str] = []
    for part in parts:
        if documents and len(documents[-1]) + 2 + len(part) <= LIMIT:
            documents[-1] += "\n\n" + part
        else:
            documents.append(part)
    return documents


def ask_of(fields: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What the terms of a section's glossary mean, and how its shorter paragraphs go on."""
    for text in _texts(fields, {"glossary"}):
        for term, meaning in TERM.findall(text):
            yield f"what is {term}?", meaning
    for text in _texts(fields, {"paragraph"}):
        sentences = SENTENCE.split(text)
        if len(sentences) >= 2 and len(text) <= LIMIT // 2:
            half = len(sentences) // 2
            yield f"continue: {' '.join(sentences[:half])}", " ".join(sentences[half:])


def _texts(fields: dict[str, Any], roles: set[str]) -> list[str]:
    """Its texts in these roles; one without a role is a paragraph."""
    parts = [part for part in fields["segments"] if part["type"] == "text"]
    return [part["text"].strip() for part in parts if part.get("role", "paragraph") in roles]


def _parts_of(text: str) -> list[str]:
    if len(text) <= LIMIT:
        return [text]
    parts = [""]
    for sentence in itertools.chain.from_iterable(SENTENCE.split(line) for line in text.splitlines()):
        if parts[-1] and len(parts[-1]) + 1 + len(sentence) > LIMIT:
            parts.append("")
        parts[-1] = f"{parts[-1]} {sentence}".strip()
    return parts
