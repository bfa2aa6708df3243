from __future__ import annotations

import tarfile
from pathlib import Path

from tests.launching import run_main
from tools.digits.grammar import load_split, read_caption
from tools.experiments import one_document


def test_the_shard_has_one_caption_and_its_digit(tmp_path: Path) -> None:
    run_main(one_document, tmp_path)
    (path,) = tmp_path.glob("*.tar")
    with tarfile.open(path) as tar:
        files = {Path(name).suffix: tar.extractfile(name) for name in tar.getnames()}
        assert set(files) == {".png", ".txt"}
        caption = files[".txt"]
        assert caption is not None
        assert read_caption(caption.read().decode()) == load_split("train")[1][0]
