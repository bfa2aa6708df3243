"""Shards of styles, and two runs of a few steps on them: one that describes pictures, one whose heads know no time."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launching import Launcher, made_once, run_main
from tools.styles import make

SMALL = (
    *("model.width=32", "model.num_layers=1", "model.mlp_width=48", "data.workers=0", "data.window_samples=32"),
    *("validation.mixture=", "validation.every_steps=0", "train.steps=4", "checkpoint.every_steps=4"),
    *("data.rows_per_pack=512", "data.tokens_per_pack=512", "sampling.steps=4", "sampling.max_rows=16"),
)


@pytest.fixture(scope="session")
def styled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards of styles, and a mixture for each task."""

    def write(folder: Path) -> Path:
        run_main(make, folder, "--documents", "96")
        for task in ("image_to_text", "text_only"):
            source = f"{{shards: '{folder}/styles-train-*.tar', weight: 1, tasks: {{{task}: 1}}}}"
            (folder / f"{task}.yaml").write_text(f"sources: {{styles: {source}}}\n")
        return folder

    return made_once("styled", write, tmp_path_factory)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher, styled: Path, root: Path) -> Path:
    """A folder with the runs `described` and `timeless`."""

    def train(folder: Path) -> Path:
        for name, task, heads in (("described", "image_to_text", "adaln"), ("timeless", "text_only", "none")):
            own = [f"run.folder={folder}/{name}", f"data.mixture={styled}/{task}.yaml"]
            own += [f"data.tokenizer={styled}/words.tiktoken", f"heads.time_conditioning={heads}"]
            end = launcher.run("-m", "oneflow_dist.train", root / "configs/styles.toml", *SMALL, *own)
            assert end.code == 0, end.stderr
        return folder

    return made_once("styled-runs", train, tmp_path_factory)
