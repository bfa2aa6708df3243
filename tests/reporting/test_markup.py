from __future__ import annotations

import pytest

from oneflow_dist.reporting.markup import Html, amount, duration, folded, join, moment, table, tag

EVIL = '</script><b a="1">\'&'


def test_all_text_is_escaped_and_html_is_not() -> None:
    assert tag("p", EVIL, title=EVIL).count("<") == 2
    assert tag("p", tag("b", "x"), 3) == "<p><b>x</b>3</p>"
    assert join(["<", Html("<br>"), 1]) == "&lt;<br>1"
    assert "<b a" not in folded(EVIL, EVIL) + table([EVIL], [[EVIL, EVIL]])


def test_attributes_may_be_absent_alone_or_named_as_python_cannot() -> None:
    assert tag("i", class_="a b", data_step=0, hidden=True, open=False) == '<i class="a b" data-step="0" hidden></i>'
    assert tag("img", alt="") == '<img alt="">'


def test_a_table_says_what_its_rows_and_columns_are() -> None:
    content = table(["", "a"], [["x", 1]])
    assert '<th scope="col">a</th>' in content
    assert '<th scope="row">x</th><td>1</td>' in content


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.25, "0.25 s"),
        (59.0, "59 s"),
        (59.7, "1 min 0 s"),
        (192.0, "3 min 12 s"),
        (7260.0, "2 h 1 min"),
        (93600.0, "1 d 2 h"),
    ],
)
def test_times_are_in_their_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("value", "text"), [(0.0, "0 B"), (999.0, "999 B"), (1.5e3, "1.5 kB"), (1.59e19, "15.9 EB")])
def test_large_numbers_have_letters(value: float, text: str) -> None:
    assert amount(value, "B") == text


def test_a_moment_keeps_its_number() -> None:
    assert 'data-at="1700000000"' in moment(1.7e9)
