from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from oneflow_dist.evaluation.metrics import meteor
from oneflow_dist.evaluation.metrics.meteor import measure_meteor
from tests.messages import names, refused

# What meteor-1.5.jar says of a question, then pycocoevalcap of the answers, alone and of both.
QUESTION = b"SCORE ||| a man is running fast ||| the guy runs ||| the man runs quickly fast\n"
SAID = {
    "the cat sat on the mat": "6 6 3 3 3 3 3 3 0 0 0 0 0 0 0 0 0 0 0 0 1 6 6",
    "the man runs quickly , fast": "6 5 2 2 1 1 0 0 0 0 0 0 0 0 0 0 2 1 1 2 2 4 4",
    "xyz": "1 3 0 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0",
}
ALONE = [1.0, 0.2581998173093651, 0.0]

PROGRAM = """#!{python}
import sys
{first}
said = {said!r}
for line in sys.stdin:
    command, *references, candidate = line.rstrip("\\n").split(" ||| ")
    assert command == "SCORE" and references, line
    print(said.get(candidate, "Error: specify SCORE or EVAL or SING"), flush=True)
"""


def stand_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch, first: str = "", said: dict[str, str] | None = None
) -> None:
    """A package with a jar, and a java that answers as the jar does."""
    jar = folder / "packages" / "pycocoevalcap" / "meteor" / "meteor-1.5.jar"
    jar.parent.mkdir(parents=True)
    jar.touch()
    java = folder / "bin" / "java"
    java.parent.mkdir()
    known = {" ".join(words.replace(" ,", "").split()): answer for words, answer in (said or SAID).items()}
    java.write_text(PROGRAM.format(python=sys.executable, first=first, said=known))
    java.chmod(0o755)
    monkeypatch.setattr(sys, "path", [str(jar.parents[2]), *(path for path in sys.path if not has_package(path))])
    monkeypatch.setenv("PATH", str(java.parent))


def has_package(path: str) -> bool:
    return (Path(path) / "pycocoevalcap").exists()


def test_the_score_is_made_of_what_the_program_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch)
    measure = measure_meteor([text.capitalize() + "." for text in SAID], [["a"], ["b", "c"], ["d"]])
    assert [measure.combine(row[None]) for row in measure.rows] == pytest.approx(ALONE, abs=1e-12)
    low, high = measure.interval()
    assert low < measure.value < high


def test_an_item_that_matches_whole_adds_no_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch)
    assert measure_meteor(["the cat sat on the mat"] * 3, [["a"]] * 3).value == 1.0


def test_the_program_is_asked_about_words_not_raw_text() -> None:
    question = meteor._question("The man runs quickly, fast!", ["A man is running fast.", "the guy runs"])
    assert question.encode() == QUESTION


def test_what_separates_texts_cannot_come_from_one() -> None:
    assert meteor._question("a ||| b", ["c|||d"]).count("|||") == 2


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [path for path in sys.path if not has_package(path)])
    assert names(refused(measure_meteor, ["a"], [["a"]]), "pycocoevalcap", "pip install", "pycocoevalcap==1.2")


def test_a_missing_java_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert names(refused(measure_meteor, ["a"], [["a"]]), "java", "apt-get install", "openjdk-17-jre-headless")


def test_a_program_that_does_not_answer_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = tmp_path / "pid"
    stand_in(
        tmp_path,
        monkeypatch,
        first=f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(60)",
    )
    monkeypatch.setattr(meteor, "PATIENCE", 2.0)
    start = time.monotonic()
    assert names(refused(measure_meteor, ["a"], [["a"]]), "meteor", 2)
    assert time.monotonic() - start < 30.0
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


def test_a_program_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, first="sys.exit('java.lang.OutOfMemoryError')")
    assert names(refused(measure_meteor, ["a"], [["a"]]), "meteor", 1, "java.lang.OutOfMemoryError")


@pytest.mark.parametrize("answer", ["Error: what?", "1 2 3", ""])
def test_answers_that_are_not_of_the_items_are_refused(
    answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, said={"a": SAID["xyz"], "b": answer})
    assert names(refused(measure_meteor, ["a", "b"], [["a"], ["b"]]), "meteor", 2, "meteor-1.5.jar")


def test_items_without_references_are_refused() -> None:
    assert names(refused(measure_meteor, ["a", "b"], [["a"], []]), "captions", "item 1", "[]")
    assert names(refused(measure_meteor, ["a", "b"], [["a"]]), "captions", 2, 1)
    assert names(refused(measure_meteor, [], []), "meteor")
