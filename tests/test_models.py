"""The small checkpoints of models/: they work as they are, and their code is the one that exports write today."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from safetensors import safe_open

from oneflow_dist.canvas import blank_canvas, parse_prompt
from oneflow_dist.data.tokenizer import load_tokenizer
from oneflow_dist.exporting.folder import CODE, REMOTE
from oneflow_dist.sampler import generate
from oneflow_dist.trained import load_model, progress_of
from tests.launching import Launcher, oneflow

MODELS = sorted(path.parent for path in (Path(__file__).parents[1] / "models").glob("*/oneflow.json"))
MOST_BYTES = 20 * 10**6  # of a folder


@pytest.fixture(params=MODELS, ids=lambda path: path.name)
def model(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def test_its_code_is_that_of_exports(model: Path) -> None:
    for name in CODE:
        assert (model / name).read_text() == (REMOTE / name).read_text(), f"{model / name}: export it again"


def test_it_is_small_and_names_no_machine(model: Path) -> None:
    assert sum(path.stat().st_size for path in model.rglob("*") if path.is_file()) <= MOST_BYTES
    for path in (path for path in model.rglob("*") if path.suffix in (".json", ".toml", ".md")):
        assert not re.search(r"(?<![\w.])/(?:work|home|root|tmp)/", path.read_text()), path


def test_its_card_says_what_is_in_it(model: Path) -> None:
    card = (model / "README.md").read_text()
    with safe_open(model / "model.safetensors", framework="pt") as file:
        total = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 it is no dict
    assert f"{total:,}" in card
    assert f"{progress_of(model).step:,} steps" in card
    for source in json.loads((model / "oneflow.json").read_text())["data"]["sources"]:
        assert f"| {source} |" in card


def test_it_writes(model: Path) -> None:
    trained, config = load_model(model)
    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    prompt = parse_prompt(next(iter(config.sampling.prompts)), tokenizer)
    (canvas,) = generate(trained, [blank_canvas(prompt, tokenizer, config.modality, 0, 0)], config, tokenizer)
    assert canvas.is_done
    assert len(canvas.tokens) > 1


def test_the_command_takes_it_from_any_folder(launcher: Launcher, tmp_path: Path) -> None:
    end = launcher.start(
        *oneflow("sample"), MODELS[0], tmp_path / "out", "--steps", "3", folder=tmp_path, env={"HOME": str(tmp_path)}
    ).wait()[0]
    assert end.code == 0, end.stderr
    assert (tmp_path / "out/documents.png").exists()
