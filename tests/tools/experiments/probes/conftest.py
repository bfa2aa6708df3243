"""A run of a few steps on digits, with held-out losses and checkpoints on the way, which several probes look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launching import Launcher, made_once
from tests.tools.experiments.making import TEXT, write
from tools.experiments.reading import Experiment, load_experiment
from tools.experiments.rows import Subject

SMALL = (
    *("model.width=32", "model.num_layers=1", "model.num_attention_heads=2", "model.num_kv_heads=2"),
    *("model.mlp_width=48", "data.workers=0", "data.window_samples=32", "data.rows_per_pack=256"),
    *("data.tokens_per_pack=256", "data.bag_tokens_per_pack=256", "metrics.tensorboard=false", "train.steps=4"),
    *("checkpoint.every_steps=2", "checkpoint.keep=2", "validation.every_steps=2", "validation.samples=4"),
    *("sampling.every_steps=0", "sampling.steps=2", "sampling.max_rows=32"),
)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher, digits: Path, root: Path) -> Path:
    """The folder of the run."""

    def train(folder: Path) -> Path:
        (folder / "heldout.yaml").write_text(
            f"sources:\n  single:\n    shards: {digits}/single-heldout-*.tar\n    weight: 1\n"
            "    tasks: {text_to_image: 1, image_to_text: 1}\n"
            f"  count:\n    shards: {digits}/count-heldout-*.tar\n    weight: 1\n    tasks: {{interleaved: 1}}\n"
        )
        own = [f"data.mixture={digits}/mixture.yaml", f"data.tokenizer={digits}/words.tiktoken"]
        own += [f"validation.mixture={folder}/heldout.yaml", f"run.folder={folder}/run"]
        end = launcher.run("-m", "oneflow_dist.train", root / "configs/quickstart.toml", *SMALL, *own)
        assert end.code == 0, end.stderr
        return folder / "run"

    return made_once("experiment-run", train, tmp_path_factory)


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    """A small one."""
    return load_experiment(str(write(tmp_path, TEXT)))


@pytest.fixture
def subject(run: Path, experiment: Experiment) -> Subject:
    """An arm whose run that is."""
    return Subject(experiment=experiment, arm="one", seed=0, folder=run)
