"""Folders of `oneflow export`: whole, and enough for those who load them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from oneflow_dist.canvas import blank_canvas, parse_prompt
from oneflow_dist.config import Config, load_config
from oneflow_dist.data.tokenizer import load_tokenizer
from oneflow_dist.exporting import folder as folders
from oneflow_dist.exporting.folder import Options, export
from oneflow_dist.model.autoencoder import hash_file
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.sampler import generate
from oneflow_dist.trained import find_checkpoint, load_model, progress_of
from tests.exporting.making import save_untrained
from tests.messages import naming
from tests.precompute.making import save_autoencoder

pytestmark = pytest.mark.usefixtures("group_of_one")
WHOLE = Options(format="transformers", dtype=torch.float32)


@pytest.fixture
def run(make_config: Callable[..., Config], make_model: Callable[..., OneFlow], tmp_path: Path) -> Path:
    config = make_config(f"run.folder={tmp_path / 'run'}", "sampling.steps=4", "sampling.max_rows=40")
    return save_untrained(config, make_model(config))


@pytest.fixture
def run_of_latents(make_config: Callable[..., Config], make_model: Callable[..., OneFlow], tmp_path: Path) -> Path:
    save_autoencoder(tmp_path / "vae")
    latents = ("modality.image.channels=4", "modality.image.shape=[4, 4]", "modality.image.patch=[2, 2]")
    config = make_config(f"run.folder={tmp_path / 'run'}", f"modality.image.codec={tmp_path / 'vae'}", *latents)
    return save_untrained(config, make_model(config))


def written(place: Path, seed: int = 0) -> tuple[list[int], list[np.ndarray]]:
    model, config = load_model(place)
    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    canvas = blank_canvas(parse_prompt("one<|image|>", tokenizer), tokenizer, config.modality, seed, 0)
    generate(model, [canvas], config, tokenizer)
    return canvas.tokens.tolist(), canvas.latents("image")


@pytest.mark.parametrize("kind", ["oneflow", "transformers"])
def test_an_export_writes_what_the_run_writes_wherever_it_is_moved(
    kind: folders.Format, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = written(run)
    export(find_checkpoint(run), tmp_path / "out", Options(format=kind, dtype=torch.float32), run)
    moved = tmp_path / "elsewhere/model"
    moved.parent.mkdir()
    (tmp_path / "out").rename(moved)
    shutil.rmtree(run)
    monkeypatch.chdir(tmp_path / "elsewhere")
    tokens, latents = written(Path("model"))
    assert tokens == expected[0]
    assert all(np.array_equal(a, b) for a, b in zip(latents, expected[1], strict=True))
    assert progress_of(Path("model")).step == 7


def test_no_path_of_the_machine_is_in_it(run_of_latents: Path, tmp_path: Path) -> None:
    export(find_checkpoint(run_of_latents), tmp_path / "out", WHOLE, run_of_latents)
    config = load_config(tmp_path / "out/config.toml")
    assert config.modality["image"].codec == "autoencoder"
    for path in (tmp_path / "out").rglob("*.json"):
        assert str(tmp_path) not in path.read_text(), path
    assert str(tmp_path) not in (tmp_path / "out/README.md").read_text()


def test_the_autoencoder_comes_along_and_is_named_by_its_hash(run_of_latents: Path, tmp_path: Path) -> None:
    export(find_checkpoint(run_of_latents), tmp_path / "out", WHOLE, run_of_latents)
    copy = tmp_path / "out/autoencoder/diffusion_pytorch_model.safetensors"
    made_by = json.loads((tmp_path / "out/oneflow.json").read_text())["autoencoders"]["image"]
    assert hash_file(copy) == hash_file(tmp_path / "vae" / copy.name) == made_by["weights_sha256"]
    shutil.rmtree(tmp_path / "vae")
    _, config = load_model(tmp_path / "out")
    assert config.modality["image"].codec == str(tmp_path / "out/autoencoder")


def test_without_the_autoencoder_its_name_and_hash_are_left(run_of_latents: Path, tmp_path: Path) -> None:
    lean = Options(format="oneflow", copies_autoencoder=False)
    export(find_checkpoint(run_of_latents), tmp_path / "out", lean, run_of_latents)
    assert not (tmp_path / "out/autoencoder").exists()
    assert load_config(tmp_path / "out/config.toml").modality["image"].codec == "vae"
    made_by = json.loads((tmp_path / "out/oneflow.json").read_text())["autoencoders"]["image"]
    assert made_by["weights_sha256"] == hash_file(tmp_path / "vae/diffusion_pytorch_model.safetensors")


def test_nothing_is_half_written(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(folders, "write_card", fail)
        with pytest.raises(OSError, match="the disk is gone"):
            export(find_checkpoint(run), tmp_path / "out", WHOLE, run)
    assert not (tmp_path / "out").exists()
    export(find_checkpoint(run), tmp_path / "out", WHOLE, run)
    assert (tmp_path / "out/README.md").exists()
    assert not (tmp_path / "out.incomplete").exists()


def test_a_folder_that_exists_is_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=naming(tmp_path / "out", "exists", "another folder")):
        export(find_checkpoint(run), tmp_path / "out", WHOLE, run)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_export_is_no_checkpoint_to_export(run: Path, tmp_path: Path) -> None:
    export(find_checkpoint(run), tmp_path / "out", WHOLE, run)
    with pytest.raises(ValueError, match=naming(tmp_path / "out", "an export itself", "name the run")):
        export(find_checkpoint(tmp_path / "out"), tmp_path / "again", WHOLE, run)
    assert not (tmp_path / "again").exists()


def test_a_tensor_that_is_missing_is_named(run: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    export(find_checkpoint(run), tmp_path / "out", WHOLE, run)
    tensors = load_file(tmp_path / "out/model.safetensors")
    save_file({k: v for k, v in tensors.items() if k != "oneflow.heads.rate.bias"}, tmp_path / "out/model.safetensors")
    with pytest.raises(ValueError, match=naming(tmp_path / "out", "heads.rate.bias", "copy")):
        load_model(tmp_path / "out")
