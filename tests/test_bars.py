"""Progress: a bar in a terminal, whole lines anywhere else."""

from __future__ import annotations

import io
import sys

import pytest

from oneflow_dist import bars
from oneflow_dist.bars import bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show(stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, **environment: str) -> str:
    """What three steps of work look like there, looked at after each."""
    for name in ("TERM", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(bars, "LINE_SECONDS", 0.0)
    monkeypatch.setattr(bars, "BAR_SECONDS", 0.0)
    with bar(total=3, desc="work", unit="step") as shown:
        for number in range(3):
            shown.set_postfix_str(f"loss {number}", refresh=False)
            shown.update()
    return stream.getvalue()


def test_a_terminal_has_one_line_that_is_written_over(monkeypatch: pytest.MonkeyPatch) -> None:
    said = show(Terminal(), monkeypatch, TERM="xterm")
    assert said.count("\r") >= 3
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("stream", "environment"),
    [(io.StringIO, {}), (Terminal, {"TERM": "dumb"}), (Terminal, {"TERM": "xterm", "NO_COLOR": "1"})],
    ids=["file", "dumb", "no color"],
)
def test_elsewhere_every_look_is_a_line(
    stream: type[io.StringIO], environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = show(stream(), monkeypatch, **environment)
    assert "\r" not in said
    assert "\x1b" not in said
    lines = said.splitlines()
    assert all(line.startswith("work: ") for line in lines)
    assert [line for line in lines if "3/3" in line][-1] == lines[-1]
    assert [part for line in lines for part in ("loss 0", "loss 1", "loss 2") if part in line][-1] == "loss 2"


def test_a_log_gets_a_line_now_and_then_and_one_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    for _ in bar(range(1000), unit="step"):
        pass
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2  # the first and the last
    assert "1000/1000" in lines[-1]


def test_bars_within_bars_move_no_cursor_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    for _ in bar(range(2), desc="outer"):
        for _ in bar(range(2), desc="inner"):
            pass
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()
    assert all(line.startswith(("outer: ", "inner: ")) for line in stream.getvalue().splitlines())


def test_no_line_comes_earlier_than_it_should_where_work_slows_down(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tqdm would skip looks while work is fast, and have a thread of its own add them where it no longer is."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with bar(range(1000)) as shown:
        for _ in shown:
            assert shown.miniters == 1


def test_a_bar_that_is_off_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    assert list(bar([1, 2], disable=True)) == [1, 2]
    assert not stream.getvalue()
