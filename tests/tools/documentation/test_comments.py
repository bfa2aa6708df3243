from __future__ import annotations

from pathlib import Path

import griffe

from tools.documentation.comments import Comments, as_text, field_comments

SOURCE = '''
class Knobs:
    """Of a test."""

    bare: int
    # Above it,
    # on two lines.
    above: int = 1
    behind: str = "a"  # behind_it
    within: (
        float  # within it
    ) = 1.0

    def call(self) -> None:
        pass  # no field
'''


def test_comments_of_a_field_stand_above_within_and_behind() -> None:
    assert field_comments(SOURCE) == {
        "bare": "",
        "above": "Above it, on two lines.",
        "behind": "behind_it",
        "within": "within it",
    }


def test_a_comment_is_no_markup_but_for_code() -> None:
    assert as_text("<a> | *b* of `x|y*`") == "&lt;a&gt; &#124; &#42;b&#42; of `x|y*`"


def test_fields_of_a_module_have_their_comments_as_docstrings(tmp_path: Path) -> None:
    (tmp_path / "knobs.py").write_text(SOURCE)
    module = griffe.load("knobs", search_paths=[tmp_path], extensions=griffe.Extensions(Comments()))
    members = module["Knobs"].members
    assert members["bare"].docstring is None
    assert members["call"].docstring is None
    assert members["behind"].docstring.value == "behind&#95;it"
