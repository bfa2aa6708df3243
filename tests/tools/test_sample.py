from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from digits import load_split
from oneflow_dist.data.tokenizer import Tokenizer
from tests.launching import Finished, Launcher, Run, only_error

Sample = Callable[..., Finished]


@pytest.fixture(scope="module")
def sample(launcher: Launcher, unbroken: Run) -> Sample:
    """tools/sample.py on a checkpoint of 20 steps."""

    def run(output: Path, *arguments: str | Path) -> Finished:
        return launcher.run("tools/sample.py", unbroken.folder, output, "--steps", "6", *arguments)

    return run


@pytest.fixture(scope="module")
def digit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the image of a held-out digit."""
    path = tmp_path_factory.mktemp("digit") / "digit.png"
    Image.fromarray(load_split("heldout")[0][0]).save(path)
    return path


def read_trace(folder: Path) -> dict[str, Any]:
    table: dict[str, Any] = json.loads((folder / "trace.json").read_text())
    return table


def test_documents_continue_the_given_text_and_image(
    sample: Sample, digit: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    prompt = ["--text", "zero", "--image", digit, "--text", "count up:"]
    end = sample(tmp_path / "out", *prompt, "--count", "24", "--seed", "2", "--time-power", "1.25", "--no-thinning")
    assert end.code == 0, end.stderr
    table = read_trace(tmp_path / "out")
    assert (table["settings"]["time_power"], table["settings"]["thinning"]) == (1.25, False)
    assert table["seed"] == 2
    assert table["settings"]["steps"] == 6
    assert table["settings"]["guidance"] == 2.0  # of configs/debug.toml
    assert [document["index"] for document in table["documents"]] == list(range(24))
    given = [tokenizer.bos, *tokenizer.encode("zero"), tokenizer.image, *tokenizer.encode("count up:")]
    names = {"trace.json", "documents.png"}
    num_painted = 0
    for index, document in enumerate(table["documents"]):
        tokens = document["tokens"]
        assert [entry["token"] for entry in tokens[: len(given)]] == given
        assert all(entry["step"] == 0 for entry in tokens[: len(given)])
        assert all(1 <= entry["step"] <= 6 for entry in tokens[len(given) :])
        assert all(entry["text"] == tokenizer.decode([entry["token"]]) for entry in tokens)

        images = [entry for entry in tokens if "image" in entry]
        assert [entry["image"] for entry in images] == [f"{index:04d}-{number}.png" for number in range(len(images))]
        assert all(entry["token"] == tokenizer.image for entry in images)
        assert images[0]["last_step"] == 0  # it was given
        assert all(entry["step"] + 6 <= entry["last_step"] <= 12 for entry in images[1:])

        num_painted += len(images) - 1

        text = (tmp_path / "out" / f"{index:04d}.txt").read_text()
        assert text == words_of(tokens, tokenizer) + "\n"
        names |= {f"{index:04d}.txt", *(entry["image"] for entry in images)}
        with Image.open(tmp_path / "out" / images[0]["image"]) as own, Image.open(digit) as original:
            assert (np.asarray(own) == np.asarray(original)).all()
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    assert num_painted > 0


def words_of(tokens: list[dict[str, Any]], tokenizer: Tokenizer) -> str:
    """A document as its text file has it: stretches of text, and images by name."""
    parts: list[str] = []
    stretch: list[int] = []
    for entry in [*tokens[1:], {"token": 0, "image": ""}]:
        if "image" not in entry:
            stretch.append(entry["token"])
            continue
        parts += [tokenizer.decode(stretch).strip(), f"[{entry['image']}]"]
        stretch = []
    return " ".join(part for part in parts[:-1] if part)


def test_the_same_seed_gives_the_same_files_and_another_seed_others(sample: Sample, tmp_path: Path) -> None:
    for name, seed in (("first", "3"), ("second", "3"), ("other", "4")):
        end = sample(tmp_path / name, "--text", "count up:", "--count", "2", "--seed", seed)
        assert end.code == 0, end.stderr
    first, second, other = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("first", "second", "other")
    )
    assert first == second
    assert first["0000.txt"] != first["0001.txt"]
    assert first["trace.json"].replace(b'"seed": 3', b'"seed": 4') != other["trace.json"]


def test_text_is_written_in_the_holes_while_images_are_painted(
    sample: Sample, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    end = sample(tmp_path / "out", "--hole", "--paint", "--text", "seven", "--count", "8")
    assert end.code == 0, end.stderr
    given = [tokenizer.bos, tokenizer.image, *tokenizer.encode("seven")]
    num_written = 0
    for document in read_trace(tmp_path / "out")["documents"]:
        tokens = document["tokens"]
        assert [entry["token"] for entry in tokens if entry["step"] == 0] == given
        (painted,) = [entry for entry in tokens if "image" in entry and entry["step"] == 0]
        assert painted["last_step"] >= 6
        assert [entry["token"] for entry in tokens[tokens.index(painted) :]] == given[1:]  # nothing but before it
        num_written += len(tokens) - len(given)
    assert num_written > 0


def test_an_image_to_paint_at_the_end_is_all_that_is_made(sample: Sample, tokenizer: Tokenizer, tmp_path: Path) -> None:
    end = sample(tmp_path / "out", "--text", "a handwritten seven", "--paint")
    assert end.code == 0, end.stderr
    assert (tmp_path / "out/0000.txt").read_text() == "a handwritten seven [0000-0.png]\n"
    assert end.stdout.splitlines()[0] == "a handwritten seven [0000-0.png]"
    (document,) = read_trace(tmp_path / "out")["documents"]
    assert document["tokens"][-1] == {
        "token": tokenizer.image,
        "text": "<|image|>",
        "step": 0,
        "image": "0000-0.png",
        "last_step": 6,
    }
    with Image.open(tmp_path / "out/0000-0.png") as picture:
        assert picture.size == (8, 8)
        assert np.asarray(picture).std() > 0.0


def test_a_document_that_is_full_says_so(sample: Sample, tmp_path: Path) -> None:
    end = sample(tmp_path / "out", "--text", "count up:", "--max-rows", "5", "--count", "8")
    assert end.code == 0, end.stderr
    is_full = [document["hit_cap"] for document in read_trace(tmp_path / "out")["documents"]]
    assert any(is_full)
    printed = end.stdout.splitlines()[:8]
    assert [line.endswith(" (stopped at max_rows)") for line in printed] == is_full


def test_a_single_checkpoint_can_be_named(launcher: Launcher, unbroken: Run, tmp_path: Path) -> None:
    step = unbroken.folder / "checkpoints/step-00000010"
    end = launcher.run("tools/sample.py", step, tmp_path / "out", "--steps", "2")
    assert end.code == 0, end.stderr
    assert (tmp_path / "out/0000.txt").exists()


def test_sampling_prints_its_documents_and_only_a_progress_bar_to_stderr(sample: Sample, tmp_path: Path) -> None:
    end = sample(tmp_path / "out")
    assert end.code == 0, end.stderr
    assert end.stdout.splitlines() == [
        (tmp_path / "out/0000.txt").read_text().rstrip("\n"),
        f"wrote 1 documents to {tmp_path / 'out'}; all of them in documents.png, their history in trace.json",
    ]
    bars = [line for line in end.stderr.replace("\r", "\n").splitlines() if line]
    assert all(line.startswith("generating: ") for line in bars), end.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "nowhere.png"], "--image: no such file nowhere.png"),
        (["--count", "0"], "--count: 0 must be positive"),
        (["--steps", "0"], "sampling.steps: 0 must be positive"),
        (["--temperature", "0"], "sampling.temperature: 0.0 must be at least 1e-30"),
        (["--image", "{text}"], "{text}: broken image (cannot identify image file); write it again or remove it"),
        (
            ["--image", "{large}"],
            "{large}: 9x9 pixels, but image.patch_size (4) must divide width and height; crop or resize the images",
        ),
    ],
    ids=["no such image", "no documents", "no steps", "no temperature", "no image", "another size"],
)
def test_what_cannot_be_sampled_is_refused_before_anything_is_written(
    arguments: list[str], message: str, sample: Sample, tmp_path: Path
) -> None:
    files = {"text": tmp_path / "text.png", "large": tmp_path / "large.png"}
    files["text"].write_text("no picture")
    Image.new("L", (9, 9)).save(files["large"])
    end = sample(tmp_path / "out", *(argument.format(**files) for argument in arguments))
    assert end.code == 2
    shown = re.sub(r"\(cannot identify image file [^)]*\)", "(cannot identify image file)", only_error(end))
    shown = shown.replace("remove the sample", "remove it")
    assert shown == f"error: {message.format(**files)}"
    assert not (tmp_path / "out").exists()


def test_without_a_checkpoint_there_is_nothing_to_sample_from(launcher: Launcher, tmp_path: Path) -> None:
    end = launcher.run("tools/sample.py", tmp_path, tmp_path / "out")
    assert (end.code, end.stderr) == (
        2,
        f"error: {tmp_path}: no complete checkpoint here or in its checkpoints/; train first, or name another folder\n",
    )
    assert list(tmp_path.iterdir()) == []
