from __future__ import annotations

import pytest

from oneflow_dist.prepare.texts import clean_caption, clean_text, count_scripts, cut_text


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        ("\ufeffA red\r\n  kite ", "A red kite"),
        ("salt &amp; pepper &#233;", "salt & pepper é"),
        ("cafe\u0301", "café"),
        ("a\x00b\x07c\x1b", "abc"),
        ("zero\u200bwidth so\u00adft", "zerowidth soft"),
        ("👩\u200d🚀 \u0915\u094d\u200d\u0937", "👩\u200d🚀 \u0915\u094d\u200d\u0937"),  # joiners are spelling
        ("half \ud800 pair", "half \ufffd pair"),
        ("\u3000wide\u00a0blanks\t", "wide blanks"),
        (" \n\t ", ""),
    ],
)
def test_a_caption_is_one_line_of_plain_characters(found: str, kept: str) -> None:
    assert clean_caption(found) == kept


def test_a_text_keeps_its_lines() -> None:
    assert clean_text("\ufeffone  two\r\nthree\r\r\r\r four &amp;\u2028five ") == "one two\nthree\n\nfour &amp;\nfive"


def test_letters_are_counted_by_their_writing_system() -> None:
    scripts = {"Latin": 2, "Cyrillic": 3, "Han": 2, "Japanese kana": 2, "Greek": 1, "Arabic": 1, "Hangul": 1}
    assert count_scripts(["ab мир 1,", "漢字かな", "ω ب 한 👩"]) == scripts


def test_long_texts_are_cut_where_they_pause() -> None:
    text = "First paragraph here.\n\nSecond one. It goes on and on.\n\nThird."
    assert cut_text(text, 36) == ["First paragraph here.", "Second one. It goes on and on.", "Third."]
    assert cut_text("x" * 25, 10) == ["x" * 10, "x" * 10, "x" * 5]
    assert cut_text("word " * 10, 12) == ["word word"] * 5
    assert cut_text("short", 12) == ["short"]
