from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from oneflow_dist.canvas import Canvas, prompt_of
from oneflow_dist.config import Config
from oneflow_dist.data.mixture import Filter, load_mixture
from tests.launching import Launcher, Run, only_error
from tests.messages import names, refused
from tests.tars import write_tar
from tools.digits.grammar import WORDS, load_split
from tools.shards import encode_png
from tools.vqa.evaluate import answer, ask, normalize, tokenizer_of


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


def test_what_is_asked_is_all_before_the_answer(mixture: Path, config: Config) -> None:
    images, labels = load_split("heldout")
    (source,) = load_mixture(str(mixture))
    tokenizer = tokenizer_of(config)
    samples = ask(config, source, 10, blind=False)
    assert len(samples) == 6  # there are no more
    for number, sample in enumerate(samples):
        user, (kind, latent), *tokens, assistant, hole = prompt_of(sample, config.modality)
        assert (user, assistant, hole) == (tokenizer.role_of["user"], tokenizer.role_of["assistant"], ...)
        assert kind == "image"
        np.testing.assert_allclose(np.rint((latent[0] + 1) * 127.5), images[number])
        assert tokenizer.decode(tokens) == "which digit?"
        assert tokenizer.decode(sample.tokens[sample.is_target].tolist()) == WORDS[labels[number]]


def test_who_is_blind_is_asked_the_same_without_the_picture(mixture: Path, config: Config) -> None:
    (source,) = load_mixture(str(mixture))
    seen, blind = (ask(config, source, 4, blind=blind) for blind in (False, True))
    for one, other in zip(seen, blind, strict=True):
        assert [len(pieces) for pieces in other.pieces] == [0]
        assert other.tokens.tolist() == np.delete(one.tokens, one.pieces[0].token).tolist()


def test_a_prompt_of_the_mixture_comes_first_and_its_filters_count(mixture: Path, config: Config) -> None:
    (source,) = load_mixture(str(mixture))
    (sample,) = ask(config, replace(source, prompt="say:"), 1, blind=True)
    assert tokenizer_of(config).decode(sample.tokens[1:].tolist()).startswith("say:<|user|>")
    nine = Filter(field="answer", one_of=("nine",))
    right = [tokenizer_of(config).decode(s.tokens[s.is_target].tolist()) for s in ask(config, source, 6, blind=True)]
    kept = replace(source, filters=(replace(nine, one_of=(right[0],)),))
    assert len(ask(config, kept, 6, blind=True)) == right.count(right[0])
    message = refused(ask, config, replace(source, filters=(replace(nine, one_of=("no",)),)), 6, True)
    assert names(message, "digits", "filters", "max_images")


def test_an_answer_with_a_picture_is_refused(config: Config, tmp_path: Path) -> None:
    image = {"type": "image", "image": "0.png"}
    turns = [{"role": "user", "content": "paint"}, {"role": "assistant", "content": [image]}]
    members = {"7.0.png": encode_png(load_split("heldout")[0][0]), "7.json": json.dumps({"messages": turns}).encode()}
    write_tar(tmp_path / "x.tar", members)
    (tmp_path / "x.yaml").write_text(f"sources: {{x: {{shards: {tmp_path}/x.tar, weight: 1, tasks: {{instruct: 1}}}}}}")
    (source,) = load_mixture(str(tmp_path / "x.yaml"))
    assert names(refused(ask, config, source, 1, False), "x/x/7")


@pytest.mark.parametrize("text", ["Two", " two.", "\n\ntwo ", '"Two"', "TWO!"])
def test_case_blanks_and_marks_around_an_answer_do_not_count(text: str) -> None:
    assert normalize(text) == "two"


def test_other_words_are_another_answer() -> None:
    assert len({normalize(text) for text in ("a b", "ab", "a-b", "a b c", "")}) == 5
    assert normalize("dark  red\ncar") == "dark red car"


def test_an_answer_is_all_that_was_written_and_nothing_else(
    mixture: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source,) = load_mixture(str(mixture))
    tokenizer = tokenizer_of(config)
    written = tokenizer.encode("seven or two")

    def write(model: None, canvases: list[Canvas], *_: object) -> None:
        for canvas in canvases:
            for token in reversed(written):
                canvas.insert(np.flatnonzero(canvas.is_open)[:1], np.array([token]), 1)

    monkeypatch.setattr("oneflow_dist.sampler.generate", write)
    answers = answer(None, config, ask(config, source, 3, blind=False))
    assert answers == [("seven or two", False)] * 3


def test_runs_answer_and_the_right_ones_are_counted_by_source(
    mixture: Path, unbroken: Run, launcher: Launcher, tmp_path: Path
) -> None:
    both = tmp_path / "both.yaml"
    (line,) = mixture.read_text().splitlines()
    entry = line.removeprefix("sources: {digits: ").removesuffix("}")
    both.write_text(f"sources: {{digits: {entry}, again: {entry}}}\n")
    for option in ([], ["--blind"]):
        end = launcher.run("tools/vqa/evaluate.py", both, unbroken.folder, "--questions", "4", *option)
        assert end.code == 0, end.stderr
        reports = [json.loads(line) for line in end.stdout.splitlines()]
        assert [report["source"] for report in reports] == ["digits", "again"]
        for report in reports:
            assert (report["run"], report["blind"]) == (str(unbroken.folder), bool(option))
            assert (report["questions"], report["cut"]) == (4, 0)
            low, high = report["interval"]
            assert 0.0 <= low <= report["right"] <= high <= 1.0


def test_features_of_a_model_that_has_none_are_refused(
    mixture: Path, unbroken: Run, launcher: Launcher, make_config: Callable[..., Config], tmp_path: Path
) -> None:
    text = mixture.read_text().replace("tasks: {instruct: 1}", "tasks: {instruct: 1}, given: {instruct: features}")
    (tmp_path / "mixture.yaml").write_text(text)
    end = launcher.run("tools/vqa/evaluate.py", tmp_path / "mixture.yaml", unbroken.folder)
    assert end.code == 2
    assert "no [modality.*] has `understanding`" in only_error(end)
