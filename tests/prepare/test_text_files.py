from __future__ import annotations

from pathlib import Path

import pytest

from oneflow_dist.prepare.text_files import decode_text, read_json, read_text
from tests.messages import naming, refused


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252", "latin-1"])
def test_usual_encodings_are_told_apart(encoding: str) -> None:
    assert decode_text("café, übel: an owl".encode(encoding)) == "café, übel: an owl"


def test_every_byte_is_some_letter() -> None:
    assert len(decode_text(bytes(range(1, 256)))) == 255


def test_a_file_that_is_too_large_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "movie.txt"
    path.write_bytes(b"x" * 11)
    assert read_text(path, 11) == "x" * 11
    with pytest.raises(ValueError, match=naming("movie.txt", 10)):
        read_text(path, 10)


@pytest.mark.parametrize("content", ["{", "[" * 100_000, '{"a": 1} x'])
def test_broken_json_is_named(content: str) -> None:
    assert "owl.json" in refused(read_json, content, "owl.json")
