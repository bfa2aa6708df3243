from __future__ import annotations

from pathlib import Path

import pytest

from tests.launching import Launcher, run_main
from tools.experiments import one_document
from tools.experiments.probes.overfit import measure
from tools.experiments.reading import Experiment, Probe
from tools.experiments.rows import Subject


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory, launcher: Launcher, digits: Path, root: Path) -> Path:
    """A run on one document, long enough to know its text."""
    folder = tmp_path_factory.mktemp("one")
    run_main(one_document, folder)
    (folder / "one.yaml").write_text(
        f"sources: {{one: {{shards: '{folder}/one-*.tar', weight: 1, tasks: {{interleaved: 1}}}}}}\n"
    )
    words = [f"data.mixture={folder}/one.yaml", f"data.tokenizer={digits}/words.tiktoken", f"run.folder={folder}/run"]
    words += ["model.width=48", "model.num_layers=1", "model.num_attention_heads=2", "model.num_kv_heads=2"]
    words += [
        "model.mlp_width=96",
        "data.rows_per_pack=256",
        "data.tokens_per_pack=256",
        "data.bag_tokens_per_pack=256",
    ]
    words += ["validation.mixture=", "validation.every_steps=0", "data.workers=0", "metrics.tensorboard=false"]
    words += ["train.steps=120", "optim.warmup_steps=10", "optim.ema_decay=0.9", "checkpoint.every_steps=60"]
    words += ["sampling.every_steps=0", "sampling.steps=16", "sampling.guidance={}", "checkpoint.keep=2"]
    end = launcher.run("-m", "oneflow_dist.train", root / "configs/quickstart.toml", *words)
    assert end.code == 0, end.stderr
    return folder / "run"


def test_a_document_is_learnt_by_heart(learnt: Path, experiment: Experiment) -> None:
    probe = Probe(kind="overfit", title="", documents=8, vary="train.steps", values=(60.0, 120.0))
    rows = list(measure(Subject(experiment=experiment, arm="one", seed=0, folder=learnt), probe))
    exact = {row.x: row.value for row in rows if row.figure == "exact"}
    errors = {row.x: row.value for row in rows if row.figure == "image_error"}
    assert exact[120.0] == 1.0
    assert errors[120.0] < errors.get(60.0, 1.0)
