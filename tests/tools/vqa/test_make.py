from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from PIL import Image

from oneflow_dist.containers import ShardRecord
from oneflow_dist.data.decoding import read_fields, read_segments
from oneflow_dist.data.shards import open_shards
from tests.launching import Launcher, only_error, run_main
from tests.messages import naming
from tests.precompute.making import contents
from tools.vqa import make as program

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "teal": (0, 128, 128)}
ANSWERS = {"yes", "no", "circle", "rectangle", "triangle", *COLOURS, "yellow", "gray", "black", "brown"}


def make(folder: Path, *arguments: str) -> Path:
    """Runs the tool in this process."""
    run_main(program, folder, *arguments)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("made") / "vqa")


def read(folder: Path, split: str) -> list[ShardRecord]:
    shards = open_shards("vqa", f"{folder}/{split}-*.tar")
    return [shards.read(number) for number in range(len(shards))]


@pytest.fixture(scope="module")
def train(made: Path) -> list[ShardRecord]:
    return read(made, "train")


@pytest.fixture(scope="module")
def heldout(made: Path) -> list[ShardRecord]:
    return read(made, "heldout")


def test_each_question_is_a_sample(train: list[ShardRecord], heldout: list[ShardRecord]) -> None:
    assert (len(train), len(heldout)) == (38_575, 9_673)
    for records, num_pictures in ((train, 4_000), (heldout, 1_000)):
        fields = [read_fields(record) for record in records]
        assert {sample["answer"] for sample in fields} == ANSWERS
        assert len({sample["picture"] for sample in fields}) == num_pictures


def test_a_sample_is_what_instruct_reads_a_picture_a_question_its_answer(heldout: list[ShardRecord]) -> None:
    for record in heldout[:50]:
        picture, question, answer = read_segments(record, read_fields(record))
        assert picture.piece == ""
        assert question.text is not None
        assert question.text.endswith("?")
        assert question.role == "user"
        assert answer.text in ANSWERS
        assert answer.role == "assistant"


def test_a_picture_shows_the_colour_that_the_answer_names(heldout: list[ShardRecord]) -> None:
    """So pictures and questions are not mixed up."""
    seen = set()
    for record in heldout[:500]:
        answer = read_fields(record)["answer"]
        with Image.open(io.BytesIO(record.files["png"])) as picture:
            assert (picture.mode, picture.size) == ("RGB", (64, 64))
            shown = {colour for _, colour in picture.getcolors(4096)}
        if answer in COLOURS:
            seen.add(answer)
            assert COLOURS[answer] in shown
    assert seen == set(COLOURS)


def test_training_shards_hold_no_picture_that_is_held_out(train: list[ShardRecord], heldout: list[ShardRecord]) -> None:
    assert not {record.files["png"] for record in train} & {record.files["png"] for record in heldout}


def test_fewer_questions_are_the_first_of_all_and_show_many_pictures(train: list[ShardRecord], tmp_path: Path) -> None:
    few = read(make(tmp_path, "--questions", "300"), "train")
    assert [record.files for record in few] == [record.files for record in train[:300]]
    assert len({record.files["png"] for record in few}) > 250


def test_writing_again_changes_nothing(made: Path, tmp_path: Path) -> None:
    make(tmp_path, "--questions", "20")
    before = contents(tmp_path)
    assert sorted(before) == ["heldout-000000.tar", "train-000000.tar"]
    assert contents(make(tmp_path, "--questions", "20")) == before


def test_without_the_package_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(ValueError, match=naming("easy_vqa", "pip install 'oneflow_dist[experiments]'")):
        make(tmp_path / "vqa")
    assert not (tmp_path / "vqa").exists()


def test_no_questions_are_refused(launcher: Launcher, tmp_path: Path) -> None:
    end = launcher.run("tools/vqa/make.py", tmp_path / "vqa", "--questions", "0")
    assert (end.code, only_error(end)) == (2, "error: --questions: 0 must lie in [1, inf)")
    assert not (tmp_path / "vqa").exists()
