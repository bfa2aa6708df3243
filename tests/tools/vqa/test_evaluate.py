from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from oneflow_dist.config import Config
from tests.launching import Launcher, Run, only_error
from tests.tars import write_tar
from tools.digits.grammar import WORDS, load_split
from tools.shards import encode_png
from tools.vqa.evaluate import ask, prompt_of


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions about digits."""
    folder = tmp_path_factory.mktemp("questions")
    images, labels = load_split("heldout")
    members: dict[str, bytes] = {}
    for number in range(6):
        fields = {"question": "which digit?", "answer": WORDS[labels[number]]}
        members |= {f"{number}.png": encode_png(images[number]), f"{number}.json": json.dumps(fields).encode()}
    write_tar(folder / "questions-0.tar", members)
    (folder / "mixture.yaml").write_text(
        f"sources: {{digits: {{shards: '{folder}/questions-*.tar', weight: 1, tasks: {{instruct: 1}}}}}}\n"
    )
    return folder / "mixture.yaml"


def test_what_is_asked_is_all_but_the_answer(mixture: Path, config: Config) -> None:
    images, labels = load_split("heldout")
    for number, (sample, right) in enumerate(ask(config, str(mixture), 10)):
        assert right == WORDS[labels[number]]
        (kind, latent), *tokens = prompt_of(sample, config)
        assert kind == "image"
        np.testing.assert_allclose(np.rint((latent[0] + 1) * 127.5), images[number])
        assert tokens == sample.tokens[~sample.is_target].tolist()[2:]
        assert len(tokens) > 0
    assert number == 5  # there are no more


def test_a_run_answers_and_the_right_ones_are_counted(mixture: Path, unbroken: Run, launcher: Launcher) -> None:
    end = launcher.run("tools/vqa/evaluate.py", mixture, unbroken.folder, "--questions", "4")
    assert end.code == 0, end.stderr
    (line,) = end.stdout.splitlines()
    report: dict[str, Any] = json.loads(line)
    assert (report["run"], report["questions"]) == (str(unbroken.folder), 4)
    assert report["right"] in (0.0, 0.25, 0.5, 0.75, 1.0)


def test_features_of_a_model_that_has_none_are_refused(
    mixture: Path, unbroken: Run, launcher: Launcher, make_config: Callable[..., Config], tmp_path: Path
) -> None:
    text = mixture.read_text().replace("tasks: {instruct: 1}", "tasks: {instruct: 1}, given: {instruct: features}")
    (tmp_path / "mixture.yaml").write_text(text)
    end = launcher.run("tools/vqa/evaluate.py", tmp_path / "mixture.yaml", unbroken.folder)
    assert end.code == 2
    assert "no [modality.*] has `understanding`" in only_error(end)
