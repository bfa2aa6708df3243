"""A job's side of the conversation, as a program."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tools.benchmark.link import in_a_line

ROOT = Path(__file__).parents[3]
SCRIPT = """
import sys
from tools.benchmark.link import Link, leave
link = Link(is_warming=sys.argv[1] == "warming")
sys.excepthook = link.on_error
print("a library says something")
link.tell("rate", value=1)
link.ready()
link.tell("rate", value=2)
raise KeyError("no such thing\\nat all")
"""


MISSING = """
import sys
sys.modules["braceexpand"] = None  # as where it is not installed
from tools.benchmark.link import main
main()
"""


def run(argument: str, answers: str, script: str = SCRIPT) -> tuple[int, list[dict[str, object]], str]:
    command = [sys.executable, "-c", script, argument]
    end = subprocess.run(command, cwd=ROOT, input=answers, capture_output=True, text=True, check=False, timeout=60)
    return end.returncode, [json.loads(line) for line in end.stdout.splitlines()], end.stderr


def test_numbers_go_out_and_everything_else_to_the_log() -> None:
    code, said, log = run("measuring", "\n" * 4)
    assert code == 1
    assert [line["kind"] for line in said] == ["rate", "ready", "rate", "failure"]
    assert said[-1]["reason"] == "KeyError: 'no such thing\\nat all'"
    assert "a library says something" in log
    assert "Traceback" in log


def test_one_that_compiles_for_others_ends_where_it_would_ask_for_the_device() -> None:
    code, said, _ = run("warming", "\n" * 4)
    assert (code, said) == (0, [{"kind": "rate", "value": 1}])


def test_where_nobody_answers_any_more_it_ends() -> None:
    code, said, _ = run("measuring", "\n")
    assert (code, [line["kind"] for line in said]) == (1, ["rate", "ready"])


def test_a_package_that_is_missing_is_said() -> None:
    code, said, _ = run('{"job": {"is_warming": false}}', "\n", MISSING)
    assert (code, said[0]["kind"]) == (1, "failure")
    assert "braceexpand" in str(said[0]["reason"])


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("\nout of memory\nand a table", "RuntimeError: out of memory"),
        ("inductor raised:\n\nno compiler\nand why", "RuntimeError: inductor raised: no compiler"),
        ("raised:", "RuntimeError: raised:"),
    ],
)
def test_an_error_is_its_kind_and_what_it_says_first(message: str, line: str) -> None:
    assert in_a_line(RuntimeError(message)) == line
