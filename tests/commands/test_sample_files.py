from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.canvas import blank_canvas
from oneflow_dist.commands.sample_files import (
    append_lines,
    claim,
    encode_files,
    file_name,
    prompt_line,
    read_lines,
    remove_old,
    text_of,
    write_film,
)
from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import Tokenizer


def test_what_is_not_of_an_earlier_call_stays(tmp_path: Path) -> None:
    for name in ("0001.txt", "documents.gif", "compare.png"):
        (tmp_path / name).touch()
    remove_old(tmp_path)
    assert len([*tmp_path.iterdir()]) == 3


@pytest.mark.parametrize("marker", ["trace.json", "compare.json"])
def test_a_folder_that_is_claimed_has_nothing_of_an_earlier_call(tmp_path: Path, marker: str) -> None:
    own = ("0001.txt", "0012-image-3.png", "documents.png", "documents.gif", "steps.jsonl", "compare.png", marker)
    for name in (*own, "note.txt", "0001.md"):
        (tmp_path / name).touch()
    claim(tmp_path, "trace.json", {"documents": []})
    assert {path.name for path in tmp_path.iterdir()} == {"note.txt", "0001.md", "trace.json"}


def test_lines_are_numbered_as_an_editor_does_and_keep_their_blanks(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeff one\r\n\r\n\t\ntwo \u2028 lines ".encode())
    assert read_lines(path) == [(f"{path}, line 1", " one"), (f"{path}, line 4", "two \u2028 lines ")]


def test_lines_can_be_read_while_more_come(tmp_path: Path) -> None:
    for number in range(2):
        append_lines(tmp_path / "steps.jsonl", [f"{number}\n"])
        assert (tmp_path / "steps.jsonl").read_text() == "0\n1\n"[: 2 * (number + 1)]


def test_a_document_names_the_files_of_its_pieces(config: Config, tokenizer: Tokenizer) -> None:
    prompt = [*tokenizer.encode("one"), ("image", np.zeros((1, 8, 8), dtype=np.float32)), *tokenizer.encode("two")]
    canvas = blank_canvas(prompt, tokenizer, config.modality, seed=0, index=7)
    assert text_of(canvas, 7, tokenizer) == "one [0007-image-0.png] two"
    assert file_name(7, "image", 0, config.modality["image"]) == "0007-image-0.png"
    (content,) = encode_files(canvas.making["image"])
    assert content.startswith(b"\x89PNG")
    line = prompt_line(canvas, 7, tokenizer)
    assert line.startswith('{"document": 7, "tokens": [')
    assert line.endswith('"text": "<|bos|>one<|image|>two", "pieces": {"image": 1}}\n')


def test_a_film_has_its_frames_in_their_colours_and_rests_on_the_last(tmp_path: Path) -> None:
    colors = [(250, 10, 20), (10, 240, 30), (20, 30, 230)]
    write_film(tmp_path / "film.gif", [Image.new("RGB", (30, 20), color) for color in colors])
    with Image.open(tmp_path / "film.gif") as film:
        assert (film.n_frames, film.size, film.info["loop"]) == (3, (30, 20), 0)
        durations = []
        for frame, color in enumerate(colors):
            film.seek(frame)
            assert np.abs(np.subtract(film.convert("RGB").getpixel((3, 3)), color)).max() <= 4
            durations.append(film.info["duration"])
    assert durations == [120, 120, 2500]
