"""oneflow tokenizer: a vocabulary learned from shards."""

from __future__ import annotations

from pathlib import Path

import pytest

from oneflow_dist.commands import tokenizer
from oneflow_dist.data.tokenizer import load_tokenizer


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr("sys.argv", ["oneflow tokenizer", *map(str, arguments)])
    tokenizer.main()


def test_the_vocabulary_shortens_the_text_that_it_was_learned_from(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new" / "words.tiktoken"
    run(monkeypatch, digits / "single-train-000000.tar", path, "--vocab-size", "300")
    tokenizer = load_tokenizer(str(path))
    assert 256 < tokenizer.vocab_size <= 306
    assert len(tokenizer.encode("a handwritten seven")) < 8
    assert load_tokenizer(f"{path}#sha256:{tokenizer.sha256}").vocab_size == tokenizer.vocab_size
    printed = capsys.readouterr().out
    assert f"sha256 {tokenizer.sha256}" in printed
    assert f"model.vocab_size must be at least {tokenizer.vocab_size}" in printed
    assert [file.name for file in path.parent.iterdir()] == ["words.tiktoken"]


def test_a_vocabulary_that_is_there_stays(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "words.tiktoken"
    path.write_text("mine")
    with pytest.raises(ValueError, match=f"^{path} exists, .*; name a new file or remove it$"):
        run(monkeypatch, digits / "single-train-000000.tar", path)
    assert path.read_text() == "mine"


def test_fewer_ranks_than_bytes_are_refused(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="--vocab-size: 255 must be at least 256, one for each byte"):
        run(monkeypatch, digits / "single-train-000000.tar", tmp_path / "x", "--vocab-size", "255")
