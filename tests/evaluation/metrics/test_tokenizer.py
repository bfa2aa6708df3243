from __future__ import annotations

import json
from pathlib import Path

import pytest

from oneflow_dist.evaluation.metrics.tokenizer import tokenize

# What pycocoevalcap 1.2 makes of 793 texts, by its Java program; tests/torture/captions.py makes it anew.
WORDS = json.loads(Path(__file__).with_name("captions_reference.json").read_text())["words"]


def test_words_are_those_of_cocos_tokenizer() -> None:
    assert len(WORDS) > 700
    assert {text: " ".join(tokenize(text)) for text in WORDS} == WORDS


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man's hat.", "a man 's hat"),
        ("It isn't; they can't!", "it is n't they ca n't"),
        ("I cannot", "i can not"),
        ("a left-facing, two-story house", "a left-facing two-story house"),
        ("1,000 at 10:30 a.m., 3.5%", "1,000 at 10:30 a.m. 3.5 %"),
        ('a "STOP" sign (red)', "a stop sign -lrb- red -rrb-"),
        ("Block A. The box of D. Smith", "block a the box of d. smith"),
        ("two\nlines\t and   blanks ", "two lines and blanks"),
        ("the end... or — not?", "the end or not"),
        ("jalapeño\u2019s 😀", "jalapeño 's"),
        ("", ""),
        (" . , ", ""),
    ],
)
def test_a_caption_is_cut_at_contractions_and_rid_of_marks(text: str, expected: str) -> None:
    assert tokenize(text) == expected.split()


def test_other_captions_change_nothing() -> None:
    assert tokenize("etc.") == tokenize("etc. A")[:1]
