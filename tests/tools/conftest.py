"""A run of a few steps on words, pictures, sounds and videos, for the tests of several tools."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.evaluating import counting, evaluated, suite_path, suite_text  # noqa: F401
from tests.launching import Launcher, made_once, run_main
from tools.sounds import make

STEPS_TRAINED = 4
SMALL = (
    *("model.width=32", "model.num_layers=1", "model.mlp_width=48", "modality.sound.adapter_width=8"),
    *("modality.video.adapter_width=4", "data.rows_per_pack=512", "data.tokens_per_pack=512", "data.workers=0"),
    *("data.window_samples=32", "sampling.every_steps=0", "sampling.steps=4", "train.deterministic=true"),
    *(f"train.steps={STEPS_TRAINED}", "checkpoint.every_steps=2"),
)


@pytest.fixture(scope="session")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shards of digits of all kinds, and a mixture of them."""

    def write(folder: Path) -> Path:
        run_main(make, folder, "--documents", "96")
        (folder / "mixture.yaml").write_text(
            "sources:\n"
            f"  together: {{shards: '{folder}/together-train-*.tar', weight: 2, tasks: {{interleaved: 1}}}}\n"
            f"  pair: {{shards: '{folder}/pair-train-*.tar', weight: 1, tasks: {{image_to_text: 1, both: 1}}}}\n"
        )
        return folder

    return made_once("spoken", write, tmp_path_factory)


@pytest.fixture(scope="session")
def sounds_command(spoken: Path, root: Path) -> Callable[..., list[str]]:
    def make_command(folder: Path, *overrides: str) -> list[str]:
        data = (f"data.mixture={spoken}/mixture.yaml", f"data.tokenizer={spoken}/words.tiktoken")
        config = str(root / "configs/sounds.toml")
        return ["-m", "oneflow_dist.train", config, f"run.folder={folder}", *data, *SMALL, *overrides]

    return make_command


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory, launcher: Launcher, sounds_command: Callable[..., list[str]]
) -> Path:
    def train(folder: Path) -> Path:
        end = launcher.run(*sounds_command(folder / "run"))
        assert end.code == 0, end.stderr
        return folder / "run"

    return made_once("trained-on-sounds", train, tmp_path_factory)
