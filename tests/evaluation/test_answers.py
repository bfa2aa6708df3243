from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from oneflow_dist.evaluation.answers import (
    PICTURES,
    Answer,
    Part,
    encode_png,
    read_answers,
    read_line,
    read_png,
    strip_name,
    write_line,
)
from tests.messages import naming
from tests.precompute.making import picture

TEXT = Part(text="one fish", born=(1, 3), tokens=("one", " fish"))
IMAGE = Part(image="0000.0-0.png", born=(2,), end=5)
ANSWER = Answer(key="0000", number=0, parts=(TEXT, IMAGE), steps=6, rows=40, hit_cap=True)

steps = st.integers(0, 1000)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
written = st.builds(lambda text, born: Part(text=text, born=tuple(born), tokens=(text,)), texts, st.lists(steps))
painted = st.builds(lambda born, end: Part(image="0.png", born=(born,), end=end), steps, steps)


@given(key=texts, number=steps, parts=st.lists(written | painted, max_size=4), hit_cap=st.booleans())
def test_an_answer_is_read_back_from_its_line(key: str, number: int, parts: list[Part], hit_cap: bool) -> None:
    answer = Answer(key=key, number=number, parts=tuple(parts), hit_cap=hit_cap, steps=7, rows=3, folder=Path("x"))
    line = write_line(answer)
    assert line.count("\n") == 1
    assert read_line(line, Path("x")) == answer


def test_answers_are_read_in_the_order_of_their_files_with_any_line_separator_in_their_texts(tmp_path: Path) -> None:
    odd = Answer(key="1", number=0, parts=(Part(text="a\u2028b\x85c\x0bd\re\nf"),), folder=tmp_path / PICTURES)
    even = Answer(key="0", number=1, parts=(), folder=tmp_path / PICTURES)
    (tmp_path / "1.jsonl").write_text(write_line(odd) + write_line(even), encoding="utf-8")
    (tmp_path / "0.jsonl").write_text(write_line(even), encoding="utf-8")
    assert read_answers(tmp_path) == [even, odd, even]


def test_what_says_nothing_is_not_written() -> None:
    table = json.loads(write_line(ANSWER))
    assert table["parts"] == [
        {"text": "one fish", "born": [1, 3], "tokens": ["one", " fish"]},
        {"image": "0000.0-0.png", "born": [2], "end": 5},
    ]
    assert "folder" not in table


def test_a_line_needs_a_key_a_number_and_parts_alone() -> None:
    line = '{"key": "7", "number": 2, "parts": [{"text": "one"}, {"image": "a.png"}]}'
    expected = Answer(key="7", number=2, parts=(Part(text="one"), Part(image="a.png")), folder=Path("x"))
    assert read_line(line, Path("x")) == expected


@pytest.mark.parametrize(
    "line",
    [
        *("", "{", "[]", "7", "{}", '{"key": "7", "number": 0}', '{"key": "7", "number": 0, "parts": null}'),
        '{"key": "7", "parts": []}',
        '{"key": "7", "number": 0, "parts": [], "colour": "red"}',
        *(
            f'{{"key": "7", "number": 0, "parts": [{part}]}}'
            for part in (
                *("3", '"one"', '["one"]', '{"txt": "one"}', '{"text": 3}', '{"text": "one", "image": "a.png"}'),
                *('{"image": "a.png", "born": 3}', '{"text": "one", "born": ["1"]}', '{"image": "a.png", "end": "9"}'),
            )
        ),
    ],
)
def test_a_damaged_line_is_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "0.jsonl").write_text(write_line(ANSWER) + line + "\n")
    with pytest.raises(ValueError, match=naming(tmp_path / "0.jsonl", 2)) as error:
        read_answers(tmp_path)
    assert "\n" not in str(error.value)


def test_a_folder_without_answers_is_named(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(ValueError, match=naming(folder)):
            read_answers(folder)


def test_pictures_are_those_of_the_parts_in_their_order(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(encode_png(picture(number)))
    parts = (Part(image="1.png"), TEXT, Part(image="0.png"))
    answer = Answer(key="0", number=0, parts=parts, folder=tmp_path)
    assert answer.images == ["1.png", "0.png"]
    made = [np.asarray(own) for own in answer.pictures()]
    assert [pixels.shape for pixels in made] == [(16, 16, 3)] * 2
    assert all(np.array_equal(pixels, np.asarray(picture(n))) for pixels, n in zip(made, (1, 0), strict=True))


def test_the_text_of_an_answer_is_all_of_it() -> None:
    parts = (Part(text="one"), IMAGE, Part(text="two"))
    assert Answer(key="0", number=0, parts=parts).text == "one two"
    assert Answer(key="0", number=0, parts=(IMAGE,)).text == ""


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "cut", "folder"])
def test_a_picture_that_cannot_be_read_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "0.png"
    content = {"empty": b"", "text": b"no picture", "cut": encode_png(picture(0, 64, 64))[:2000]}
    if damage in content:
        path.write_bytes(content[damage])
    if damage == "folder":
        path.mkdir()
    with pytest.raises(ValueError, match=naming(path)) as error:
        Answer(key="0", number=0, parts=(Part(image="0.png"),), folder=tmp_path).pictures()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1"])
def test_every_kind_of_picture_is_read_in_three_colours(mode: str, tmp_path: Path) -> None:
    Image.new("RGB", (4, 3), (255, 255, 255)).convert(mode).save(tmp_path / "0.png")
    read = read_png(tmp_path / "0.png")
    assert (read.mode, read.size, read.getpixel((3, 2))) == ("RGB", (4, 3), (255, 255, 255))


@pytest.mark.parametrize(
    ("image", "strip"),
    [("0.png", "0.steps.png"), ("a.png.b-0.png", "a.png.b-0.steps.png"), ("0.jpg", "0.jpg.steps.png")],
)
def test_states_lie_beside_their_picture_under_a_name_of_their_own(image: str, strip: str) -> None:
    assert strip_name(image) == strip
