from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oneflow_dist.canvas import parse_prompt
from oneflow_dist.commands import writing
from oneflow_dist.commands.writing import Written, write
from oneflow_dist.data.tokenizer import load_tokenizer
from oneflow_dist.runtime import is_main
from oneflow_dist.sampler import Step
from oneflow_dist.trained import load_model
from tests.launching import Launcher, Run

PROMPTS = ("count up:", "<|hole|><|image|>", "one")
COUNT = 2


def write_all(folder: Path, steps_file: Path) -> tuple[dict[int, Any], int, list[int]]:
    """Tokens and latents of each document that this rank has in the end, rows, and steps of the film."""
    model, config = load_model(folder)
    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    prompts = [parse_prompt(prompt, tokenizer) for prompt in PROMPTS]
    written = write(model, prompts, config, tokenizer, 3, COUNT, steps_file=steps_file, has_film=True)
    assert isinstance(written, Written)
    documents = {index: (canvas.tokens, canvas.latents("image")) for index, canvas in written.documents.items()}
    assert all(canvas.is_done for canvas in written.documents.values())
    return documents, written.num_rows, [*written.film.states] if is_main() else []


@pytest.fixture(scope="module")
def alone(launcher: Launcher, unbroken: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    path = tmp_path_factory.mktemp("alone") / "steps.jsonl"
    (result,) = launcher.call(1, write_all, unbroken.folder, path)
    return result, path


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_share_the_documents_and_the_first_has_all_of_them(
    num_ranks: int, alone: tuple[Any, Path], launcher: Launcher, unbroken: Run, tmp_path: Path
) -> None:
    (documents, num_rows, states), path = alone
    first, *others = launcher.call(num_ranks, write_all, unbroken.folder, tmp_path / "steps.jsonl")
    assert [*first[0]] == [*documents] == [*range(len(PROMPTS) * COUNT)]
    for rank, (own, *_) in enumerate(others, start=1):
        assert [*own] == [*range(rank, len(documents), num_ranks)]
    for index, (tokens, latents) in documents.items():
        assert np.array_equal(first[0][index][0], tokens)
        for latent, expected in zip(first[0][index][1], latents, strict=True):
            np.testing.assert_allclose(latent, expected, rtol=0.0, atol=1e-5)
    assert first[1] == num_rows
    assert first[2] == states
    keys = [
        [(line.get("step", 0), line["document"]) for line in map(json.loads, file.read_text().splitlines())]
        for file in (path, tmp_path / "steps.jsonl")
    ]
    assert keys[0] == keys[1] == sorted(keys[1])


def test_every_document_is_in_the_file_with_its_prompt_and_each_step(alone: tuple[Any, Path]) -> None:
    (documents, _, states), path = alone
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["document"] for line in lines[: len(documents)]] == [*documents]
    assert all("tokens" in line for line in lines[: len(documents)])
    assert not any("tokens" in line for line in lines[len(documents) :])
    assert {line["document"] for line in lines if line.get("step") == 1} == {*documents}
    assert max(line.get("step", 0) for line in lines) == states[-1]


def watch(folder: Path, steps_file: Path) -> list[int]:
    """How many lines of the file there are whenever the model is to be asked again."""
    model, config = load_model(folder)
    tokenizer = load_tokenizer(config.data.tokenizer, config.modality)
    seen, generate = [], writing.generate_steps

    def watched(*arguments: Any) -> Iterator[Step]:
        for step in generate(*arguments):
            seen.append(len(steps_file.read_text().splitlines()))
            yield step

    writing.generate_steps = watched  # in a process of its own
    write(model, [parse_prompt("count up:", tokenizer)], config, tokenizer, 3, COUNT, steps_file=steps_file)
    return seen


def test_the_file_can_be_followed(launcher: Launcher, unbroken: Run, tmp_path: Path) -> None:
    (seen,) = launcher.call(1, watch, unbroken.folder, tmp_path / "steps.jsonl")
    assert seen[:2] == [COUNT, 2 * COUNT]  # the prompts, then the first step
    assert seen == sorted(set(seen))
