from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.canvas import Canvas, blank_canvas
from oneflow_dist.config import Config
from oneflow_dist.data.codec import pixels_to_latent
from oneflow_dist.data.tokenizer import Tokenizer, load_tokenizer, train_ranks, write_ranks
from tests.launching import Launcher, Run, only_error
from tools.digits.evaluate import check_digits, count_parts, judge_interleaved, judge_single, read_metrics
from tools.digits.grammar import load_split, read_images

Write = Callable[..., Canvas]


@pytest.fixture(scope="module")
def write(config: Config, tokenizer: Tokenizer) -> Write:
    """A finished document: texts, and for a number an image of this digit."""
    images, labels = load_split("train")
    latents = np.stack([pixels_to_latent(image) for image in images])
    seen = read_images(latents)
    digit = {d: latents[np.flatnonzero((labels == d) & (seen == d))[0]] for d in range(10)}

    def make(*parts: str | int) -> Canvas:
        prompt: list[int | np.ndarray | None] = []
        for part in parts:
            prompt += tokenizer.encode(part) if isinstance(part, str) else [digit[part]]
        return blank_canvas(prompt, tokenizer, config.image, seed=0, index=0)

    return make


@pytest.mark.parametrize(
    ("parts", "valid_text", "has_image", "agreement"),
    [
        (["a handwritten seven", 7], 1, 1, 1),
        ([7, " the digit seven"], 1, 1, 1),  # in either order
        (["a handwritten seven", 3], 1, 1, 0),  # another digit
        (["a handwritten seven"], 1, 0, 0),  # no image
        (["a handwritten seven", 7, 7], 1, 0, 0),  # one too many
        (["a handwriten seven", 7], 0, 1, 0),  # no word
        (["a handwritten seven seven", 7], 0, 1, 0),
        ([7], 0, 1, 0),  # no text
        ([], 0, 0, 0),
    ],
)
def test_a_captioned_digit_is_right_if_text_and_image_agree(
    parts: list[str | int], valid_text: int, has_image: int, agreement: int, write: Write, tokenizer: Tokenizer
) -> None:
    verdict = judge_single([write(*parts)], tokenizer)
    assert verdict == {"valid_text": valid_text, "has_image": has_image, "agreement": agreement}


def test_a_caption_torn_apart_by_its_image_is_no_sentence(write: Write, tokenizer: Tokenizer) -> None:
    assert judge_single([write("a handwritten", 7, " seven")], tokenizer)["valid_text"] == 0.0


@pytest.mark.parametrize(
    ("parts", "valid_text", "has_image", "agreement", "right"),
    [
        (["count up: three", 3, " four", 4, " five", 5], 1, 1, 1.0, 1),
        (["count up: nine", 9], 1, 1, 1.0, 1),
        (["count up: three", 3, " four", 7], 1, 1, 0.5, 0),  # one wrong image
        (["count up: three", 4, " four", 3], 1, 1, 0.0, 0),  # both there, in the wrong order
        (["count up: three", 3, " five", 5], 0, 1, 1.0, 0),  # a number left out
        (["count up: four", 4, " three", 3], 0, 1, 1.0, 0),  # down
        (["count up: three", 3, " fore", 4], 0, 1, 0.5, 0),  # no word
        (["count up: three four", 4], 0, 1, 0.0, 0),  # an image is missing, which makes one part of two words
        (["count up: three", 3, " four"], 1, 0, 1.0, 0),  # the last image is missing
        (["count up: three", 3, 4, " four", 4], 1, 0, 2 / 3, 0),  # an image too many
        (["count up:", 3, " three"], 1, 0, 0.0, 0),  # the image before its word
        (["count up: zero", 0, " one", 1, " two", 2, " three", 3, " four", 4, " five", 5], 0, 1, 1.0, 0),  # six
    ],
)
def test_a_counting_document_is_right_if_all_of_it_is(
    parts: list[str | int],
    valid_text: int,
    has_image: int,
    agreement: float,
    right: int,
    write: Write,
    tokenizer: Tokenizer,
) -> None:
    assert judge_interleaved([write(*parts)], tokenizer) == {
        "valid_text": valid_text,
        "has_image": has_image,
        "agreement": round(agreement, 4),
        "documents_right": right,
    }


def test_shares_are_of_documents_but_agreement_is_of_images(write: Write, tokenizer: Tokenizer) -> None:
    documents = [
        write("count up: three", 3, " four", 4, " five", 5),
        write("count up: one", 2),
        write("count up: two", 2, " three"),
        write("count up:"),
    ]
    assert judge_interleaved(documents, tokenizer) == {
        "valid_text": 0.75,
        "has_image": 0.75,  # in the empty one every word, of none, is followed by an image
        "agreement": 0.8,
        "documents_right": 0.25,
    }


@pytest.mark.parametrize("parts", [["count up:"], ["count up: three"]])
def test_documents_without_images_agree_in_nothing(parts: list[str], write: Write, tokenizer: Tokenizer) -> None:
    verdict = judge_interleaved([write(*parts)], tokenizer)
    assert verdict["agreement"] == 0.0  # and not NaN, which is no JSON
    assert verdict["documents_right"] == 0.0


def test_the_prompt_is_no_part_of_a_counting_document(write: Write, tokenizer: Tokenizer) -> None:
    assert count_parts(write("count up: three", 3, " four"), tokenizer) == ["three", 0, "four"]
    assert count_parts(write("count up:", 3), tokenizer) == [0]
    assert count_parts(write("count up:"), tokenizer) == []


def test_the_length_of_a_training_is_that_of_its_metrics(tmp_path: Path) -> None:
    lines = [{"step": step, "seconds": 0.5, "padding": 0.1 * step} for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_metrics(tmp_path / "metrics.jsonl")
    assert found == {"steps": 3, "train_seconds": 1.5, "padding": pytest.approx(0.2)}


@pytest.fixture(scope="module")
def evaluated(launcher: Launcher, unbroken: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of 20 steps, evaluated."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(unbroken.folder, folder)
    return Run(folder, launcher.run("tools/digits/evaluate.py", folder, "--samples", "8", "--steps", "4"))


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_the_report_of_a_run_has_all_its_numbers(evaluated: Run) -> None:
    assert evaluated.end.code == 0, evaluated.end.stderr
    report: dict[str, Any] = json.loads((evaluated.folder / "report.json").read_text(), parse_constant=refuse)
    size = {"num_samples", "sampler_steps", "guidance"}
    assert list(report) == [
        "steps", "train_seconds", "padding", "num_parameters", "single", "both", "interleaved", "prompted"
    ]  # fmt: skip
    assert set(report["single"]) == set(report["both"]) == {"valid_text", "has_image", "agreement"} | size
    assert report["both"]["has_image"] > 0.0  # it is there from the start, and needs no luck
    assert set(report["interleaved"]) == {"valid_text", "has_image", "agreement", "documents_right"} | size
    assert set(report["prompted"]) == {"text_to_image", "image_to_text"} | size
    assert report["steps"] == 20
    assert report["num_parameters"] > 100_000
    for section in ("single", "both", "interleaved", "prompted"):
        shares = [value for key, value in report[section].items() if key not in size]
        assert all(0.0 <= share <= 1.0 for share in shares)
        assert [report[section][key] for key in ("num_samples", "sampler_steps", "guidance")] == [8, 4, 2.0]


def test_the_report_is_printed_and_the_pages_are_named(evaluated: Run) -> None:
    printed = evaluated.end.stdout
    kinds = [line.split()[0] for line in printed.splitlines()[1:6]]
    assert kinds == ["single", "both", "interleaved", "text_to_image", "image_to_text"]
    body = printed[printed.index("{") : printed.rindex("}") + 1]
    assert json.loads(body) == json.loads((evaluated.folder / "report.json").read_text())
    folder = evaluated.folder
    *_, wrote, _, sample, describe, train = printed.splitlines()
    assert wrote == f"wrote {folder / 'report.json'} and {folder / 'gallery.png'}"
    assert f"sample.py {folder} out" in sample  # what to type next
    assert f"sample.py {folder} out --image" in describe
    assert "oneflow_dist.train configs/quickstart.toml" in train


def test_an_evaluation_warns_of_nothing(evaluated: Run) -> None:
    assert evaluated.end.stderr == ""


def test_the_gallery_of_a_run_is_a_page(evaluated: Run) -> None:
    with Image.open(evaluated.folder / "gallery.png") as page:
        assert page.width > 1000
        assert page.height > 500
        assert (np.asarray(page.convert("L")) < 100).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--samples", "0"], "--samples: 0 must lie in [1, inf)"),
        ([], "{folder}: no complete checkpoint here or in its checkpoints/; train first, or name another folder"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_with_one_line(
    arguments: Sequence[str], message: str, launcher: Launcher, tmp_path: Path
) -> None:
    end = launcher.run("tools/digits/evaluate.py", tmp_path, *arguments)
    assert (end.code, only_error(end)) == (2, f"error: {message.format(folder=tmp_path)}")
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_something_else_is_refused(config: Config, tokenizer: Tokenizer, tmp_path: Path) -> None:
    check_digits(tmp_path, config, tokenizer)
    other = dataclasses.replace(config, image=dataclasses.replace(config.image, channels=16))
    with pytest.raises(ValueError, match="its images are 8x8x16, but digits are 8x8x1; "):
        check_digits(tmp_path, other, tokenizer)
    write_ranks(tmp_path / "other.tiktoken", train_ranks(["a red car", "a blue car"], vocab_size=262))
    data = dataclasses.replace(config.data, tokenizer=str(tmp_path / "other.tiktoken"))
    other = dataclasses.replace(config, data=data)
    with pytest.raises(ValueError, match=r"other\.tiktoken is not the vocabulary of digits"):
        check_digits(tmp_path, other, load_tokenizer(data.tokenizer))


def test_a_run_without_metrics_is_refused_before_documents_are_generated(launcher: Launcher, unbroken: Run) -> None:
    folder = unbroken.folder / "checkpoints/step-00000010"  # a checkpoint, not the folder of a run
    end = launcher.run("tools/digits/evaluate.py", folder, "--samples", "2", "--steps", "2")
    assert end.code == 2
    assert "metrics.jsonl" in only_error(end)
    assert end.stdout == ""
