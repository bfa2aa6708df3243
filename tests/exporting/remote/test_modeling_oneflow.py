"""The code that a folder brings, in an environment that has torch and transformers and nothing of this project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from oneflow_dist.canvas import blank_canvas, parse_prompt
from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import load_tokenizer
from oneflow_dist.exporting.folder import Options, export
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.sampler import generate
from oneflow_dist.trained import find_checkpoint, load_model
from tests.environments import link, needed
from tests.exporting.making import save_untrained

ALONE = """
import importlib.util, sys
import numpy as np
assert importlib.util.find_spec("oneflow_dist") is importlib.util.find_spec("diffusers") is None
from transformers import AutoModel, AutoTokenizer
model = AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
document = model.write(tokenizer, "count up:<|image|><|hole|>", seed=5)
np.savez(sys.argv[2], *model.latents(document), tokens=document.tokens, parts=repr(document.parts))
"""


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which torch and transformers can be imported, with what these need, and nothing else."""
    folder = tmp_path_factory.mktemp("packages")
    link(needed(["torch", "transformers"]).values(), folder)
    return folder


@pytest.mark.usefixtures("group_of_one")
def test_torch_and_transformers_are_all_that_a_document_takes(
    packages: Path, make_config: Callable[..., Config], make_model: Callable[..., OneFlow], tmp_path: Path
) -> None:
    config = make_config(f"run.folder={tmp_path / 'run'}", "sampling.steps=8", "sampling.max_rows=60")
    run = save_untrained(config, make_model(config))
    export(find_checkpoint(run), tmp_path / "out", Options(format="transformers", dtype=torch.float32), run)
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(packages),
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-S", "-c", ALONE, tmp_path / "out", tmp_path / "written.npz"]
    end = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert end.returncode == 0, end.stderr
    ours, config = load_model(run)
    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    canvas = blank_canvas(parse_prompt("count up:<|image|><|hole|>", tokenizer), tokenizer, config.modality, 5, 0)
    generate(ours, [canvas], config, tokenizer)
    with np.load(tmp_path / "written.npz") as found:
        assert np.array_equal(found["tokens"], canvas.tokens)
        assert str(found["parts"]) == repr(canvas.parts(tokenizer))
        latents = canvas.latents("image")
        assert len(latents) >= 1
        for number, latent in enumerate(latents):
            assert np.abs(found[f"arr_{number}"] - latent).max() <= 1e-5 * max(1.0, np.abs(latent).max())


def test_the_config_says_which_code_is_its_own(
    make_config: Callable[..., Config], make_model: Callable[..., OneFlow], tmp_path: Path, group_of_one: None
) -> None:
    config = make_config(f"run.folder={tmp_path / 'run'}")
    run = save_untrained(config, make_model(config))
    export(find_checkpoint(run), tmp_path / "out", Options(format="transformers"), run)
    table = json.loads((tmp_path / "out/config.json").read_text())
    for name in table["auto_map"].values():
        module, _, own = name.partition(".")
        assert f"class {own}(" in (tmp_path / f"out/{module}.py").read_text()
