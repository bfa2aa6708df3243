"""A folder that brings its own code writes what the trainer writes: the same tokens, latents to rounding."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from oneflow_dist.canvas import Canvas, blank_canvas, parse_prompt
from oneflow_dist.config import Config
from oneflow_dist.data.tokenizer import Tokenizer, load_tokenizer
from oneflow_dist.exporting.folder import Options, export
from oneflow_dist.model.oneflow import OneFlow
from oneflow_dist.sampler import generate
from oneflow_dist.trained import find_checkpoint, load_model
from tests.exporting.making import save_untrained
from tests.modalities import SOUND, VIDEO

PROMPTS = ("", "seven", "one<|image|>", "<|hole|><|image|>", "three<|image|><|hole|> five<|image|>")
CASES: dict[str, tuple[str, ...]] = {
    "as the quickstart": (),
    "heads that know no time": ("heads.time_conditioning=none",),
    "time as a token": ("heads.time_conditioning=token",),
    "blocks modulated": ("modality.image.time_conditioning=adaln",),
    "tied": ("model.tie_embeddings=true",),
    "normed queries": ("model.qk_norm=true",),
    "stretched positions": ("model.rope_scaling=8.0", "modality.image.squeezed_to=1"),
    "two layers": ("modality.image.adapter=two_layer", "modality.image.adapter_width=24"),
    "prompts that see themselves": ("model.prompt_sees=prompt",),
    "a schedule of cosines": ("flow.keep_schedule=cosine", "sampling.time_power=1.0"),
    "a schedule of powers": ("flow.keep_schedule=power", "flow.keep_exponent=2.0"),
    "each slot for itself": ("sampling.firing=independent",),
    "any token": ("sampling.top_p=1.0", "sampling.temperature=0.7"),
    "few tokens": ("sampling.top_k=5",),
    "without guidance": ("sampling.guidance={}",),
    "little room": ("sampling.max_rows=14",),
    "other steps for images": ("sampling.piece_steps={image=3}",),
    "sounds and videos": (*SOUND, *VIDEO, "sampling.guidance={image=2.0, sound=3.0}"),
}


@dataclass(frozen=True, kw_only=True)
class Both:
    """The trainer's model, and that of a folder with its own code."""

    ours: OneFlow
    config: Config
    own: Tokenizer
    theirs: Any
    tokenizer: Any

    def write(self, prompt: str, seed: int) -> tuple[Canvas, Any]:
        """A document of each."""
        canvas = blank_canvas(parse_prompt(prompt, self.own), self.own, self.config.modality, seed, 0)
        generate(self.ours, [canvas], self.config, self.own)
        return canvas, self.theirs.write(self.tokenizer, prompt, seed=seed)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, make_config: Callable[..., Config], tmp_path: Path) -> Config:
    return make_config(
        f"run.folder={tmp_path / 'run'}", "sampling.steps=6", "sampling.max_rows=48", *CASES[request.param]
    )


@pytest.fixture
def both(
    case: Config,
    make_model: Callable[..., OneFlow],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    group_of_one: None,
) -> Both:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])
    run = save_untrained(case, make_model(case))
    export(find_checkpoint(run), tmp_path / "out", Options(format="transformers", dtype=torch.float32), run)
    ours, config = load_model(run)
    return Both(
        ours=ours,
        config=config,
        own=load_tokenizer(config.data.tokenizer, config.modality),
        theirs=AutoModel.from_pretrained(tmp_path / "out", trust_remote_code=True).eval(),
        tokenizer=AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=True),
    )


def test_documents_are_those_of_the_trainer(both: Both) -> None:
    num_pieces = 0
    for prompt in PROMPTS:
        for seed in range(3):
            canvas, document = both.write(prompt, seed)
            assert np.array_equal(document.tokens, canvas.tokens), prompt
            assert document.parts == canvas.parts(both.own)
            for kind in both.config.modality:
                latents = both.theirs.latents(document, kind)
                num_pieces += len(latents)
                for found, expected in zip(latents, canvas.latents(kind), strict=True):
                    assert found.shape == expected.shape
                    assert np.abs(found - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())
    assert num_pieces >= 2 * len(PROMPTS)


@pytest.mark.parametrize("case", ["as the quickstart", "prompts that see themselves"], indirect=True)
def test_what_is_given_stays_to_the_bit(both: Both) -> None:
    picture = np.linspace(-1.0, 1.0, 64, dtype=np.float32).reshape(1, 8, 8)
    document = both.theirs.write(both.tokenizer, [("image", picture), "is<|hole|>"], seed=1)
    assert np.array_equal(both.theirs.latents(document)[0], picture)
    prompt = [("image", picture), *parse_prompt("is<|hole|>", both.own)]
    canvas = blank_canvas(prompt, both.own, both.config.modality, 1, 0)
    generate(both.ours, [canvas], both.config, both.own)
    assert np.array_equal(document.tokens, canvas.tokens)
    pixels = both.theirs.pixels(document)[0]
    assert (pixels.shape, pixels.min(), pixels.max()) == ((8, 8), 0, 255)
