"""A folder as a pipeline of diffusers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from oneflow_dist.canvas import blank_canvas, parse_prompt
from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import load_tokenizer
from oneflow_dist.exporting.folder import Options, export
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.pictures import draw_pieces
from oneflow_dist.sampler import generate
from oneflow_dist.trained import find_checkpoint, load_model
from tests.exporting.making import save_untrained
from tests.precompute.making import save_autoencoder

LATENTS = ("modality.image.channels=4", "modality.image.shape=[4, 4]", "modality.image.patch=[2, 2]")


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("has_autoencoder", [False, True])
def test_its_pictures_are_those_of_the_run(
    has_autoencoder: bool,
    make_config: Callable[..., Config],
    make_model: Callable[..., OneFlow],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("transformers.dynamic_module_utils", "diffusers.utils.dynamic_modules_utils"):
        monkeypatch.setattr(f"{module}.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])
    of_latents = (*LATENTS, f"modality.image.codec={save_autoencoder(tmp_path / 'vae')}") if has_autoencoder else ()
    config = make_config(f"run.folder={tmp_path / 'run'}", *of_latents)
    run = save_untrained(config, make_model(config))
    export(find_checkpoint(run), tmp_path / "out", Options(format="diffusers", dtype=torch.float32), run)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "out", trust_remote_code=True)
    pictures = pipeline("one", num_images_per_prompt=2, num_inference_steps=3, guidance_scale=2.0, seed=4).images
    for place in (run, tmp_path / "out/transformer"):  # which is a folder for this package, too
        ours, config = load_model(place)
        tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
        prompt = parse_prompt("one<|image|>", tokenizer)
        canvases = [blank_canvas(prompt, tokenizer, config.modality, 4, index) for index in range(2)]
        sampling = replace(config.sampling, steps=3, guidance={"image": 2.0})
        generate(ours, canvases, replace(config, sampling=sampling), tokenizer)
        latents = [canvas.latents("image")[0] for canvas in canvases]
        for picture, drawn in zip(pictures, draw_pieces(latents, config.modality["image"]), strict=True):
            expected = np.asarray(drawn)
            assert picture.size == drawn.size
            assert np.abs(np.asarray(picture).astype(int) - expected.astype(int)).max() <= 1  # of 255, by rounding
