from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.data.tokenizer import Tokenizer
from tests.launching import Finished, Launcher, Run, only_error
from tools.digits.grammar import load_split
from tools.sample import remove_old

ROOT = Path(__file__).parents[2]
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
    options = ["--firing", "independent", "--guidance", "gate=1.5", "--guidance", "tokens=0.5"]
    end = sample(tmp_path / "out", *prompt, "--count", "24", "--seed", "2", "--time-power", "1.25", *options)
    assert end.code == 0, end.stderr
    table = read_trace(tmp_path / "out")
    assert (table["settings"]["time_power"], table["settings"]["firing"]) == (1.25, "independent")
    assert table["seed"] == 2
    assert table["settings"]["steps"] == 6
    assert table["settings"]["guidance"] == {
        "image": 2.0,
        "gate": 1.5,
        "tokens": 0.5,
    }  # that of configs/debug.toml, too
    assert [document["index"] for document in table["documents"]] == list(range(24))
    given = [tokenizer.bos, *tokenizer.encode("zero"), tokenizer.piece_of["image"], *tokenizer.encode("count up:")]
    names = {"trace.json", "documents.png"}
    num_painted = 0
    for index, document in enumerate(table["documents"]):
        tokens = document["tokens"]
        assert [entry["token"] for entry in tokens[: len(given)]] == given
        assert all(entry["step"] == 0 for entry in tokens[: len(given)])
        assert all(1 <= entry["step"] <= 6 for entry in tokens[len(given) :])
        assert all(entry["text"] == tokenizer.decode([entry["token"]]) for entry in tokens)

        images = [entry for entry in tokens if "image" in entry]
        assert [entry["image"] for entry in images] == [f"{index:04d}-image-{n}.png" for n in range(len(images))]
        assert all(entry["token"] == tokenizer.piece_of["image"] for entry in images)
        assert images[0]["last_step"] == 0  # it was given
        assert all(entry["step"] + 6 <= entry["last_step"] <= 12 for entry in images[1:])

        num_painted += len(images) - 1

        lengths = [(entry["tokens"], entry["expected"]) for entry in document["lengths"]]
        assert len(lengths) == 6  # before each step of the text
        assert lengths[0][0] == len(given)
        assert all(there <= expected for there, expected in lengths)
        assert [there for there, _ in lengths] == [
            sum(entry["step"] < step for entry in tokens) for step in range(1, 7)
        ]

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
    given = [tokenizer.bos, tokenizer.piece_of["image"], *tokenizer.encode("seven")]
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
    assert (tmp_path / "out/0000.txt").read_text() == "a handwritten seven [0000-image-0.png]\n"
    assert end.stdout.splitlines()[1] == "a handwritten seven [0000-image-0.png]"
    (document,) = read_trace(tmp_path / "out")["documents"]
    assert document["tokens"][-1] == {
        "token": tokenizer.piece_of["image"],
        "text": "<|image|>",
        "step": 0,
        "image": "0000-image-0.png",
        "last_step": 6,
    }
    with Image.open(tmp_path / "out/0000-image-0.png") as picture:
        assert picture.size == (8, 8)
        assert np.asarray(picture).std() > 0.0


def test_a_document_that_is_full_says_so(sample: Sample, tmp_path: Path) -> None:
    end = sample(tmp_path / "out", "--text", "count up:", "--max-rows", "5", "--count", "8")
    assert end.code == 0, end.stderr
    is_full = [document["hit_cap"] for document in read_trace(tmp_path / "out")["documents"]]
    assert any(is_full)
    printed = end.stdout.splitlines()[1:9]
    assert [line.endswith(" (stopped at max_rows)") for line in printed] == is_full


def test_a_single_checkpoint_can_be_named(launcher: Launcher, unbroken: Run, tmp_path: Path) -> None:
    step = unbroken.folder / "checkpoints/step-00000010"
    end = launcher.run("tools/sample.py", step, tmp_path / "out", "--steps", "2")
    assert end.code == 0, end.stderr
    assert (tmp_path / "out/0000.txt").exists()


def test_sampling_prints_its_documents_and_only_a_progress_bar_to_stderr(
    sample: Sample, unbroken: Run, tmp_path: Path
) -> None:
    end = sample(tmp_path / "out")
    assert end.code == 0, end.stderr
    assert end.stdout.splitlines() == [
        f"loading {unbroken.folder}",
        (tmp_path / "out/0000.txt").read_text().rstrip("\n"),
        f"wrote 1 documents to {tmp_path / 'out'}; all of them in documents.png, their history in trace.json",
    ]
    bars = [line for line in end.stderr.replace("\r", "\n").splitlines() if line]
    assert all(line.startswith("generating: ") for line in bars), end.stderr
    assert re.search(r" 100%\|.*\| (\d+)/\1 ", bars[-1])


def test_marks_in_a_text_are_images_to_paint_and_holes(sample: Sample, tmp_path: Path) -> None:
    for name, prompt in (
        ("marks", ["--text", "<|hole|><|image|>one"]),
        ("parts", ["--hole", "--paint", "--text", "one"]),
    ):
        end = sample(tmp_path / name, *prompt, "--count", "2")
        assert end.code == 0, end.stderr
    marks, parts = ((tmp_path / name / "trace.json").read_text() for name in ("marks", "parts"))
    assert marks == parts


def test_a_call_with_fewer_documents_leaves_none_of_the_call_before(sample: Sample, tmp_path: Path) -> None:
    for count in ("3", "1"):
        end = sample(tmp_path, "--paint", "--count", count, "--steps", "2")
        assert end.code == 0, end.stderr
        (tmp_path / "note.txt").touch()
    names = {"0000.txt", "0000-image-0.png", "trace.json", "documents.png", "note.txt"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_what_is_not_of_an_earlier_call_stays(tmp_path: Path) -> None:
    (tmp_path / "0001.txt").touch()
    remove_old(tmp_path)
    assert (tmp_path / "0001.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "nowhere.png"], "--image: no such file nowhere.png"),
        (["--count", "0"], "--count: 0 must lie in [1, inf)"),
        (["--seed", str(2**63)], f"--seed: {2**63} must lie in [0, 2^63)"),
        (["--steps", "0"], "--steps: 0 must lie in [1, inf)"),
        (["--temperature", "0"], "--temperature: 0.0 must lie in [1e-30, inf)"),
        (["--guidance", "3"], "--guidance: '3' is not NAME=WEIGHT, as image=3"),
        (["--guidance", "image=much"], "--guidance: 'image=much' is not NAME=WEIGHT, as image=3"),
        (["--guidance", "image=nan"], "sampling.guidance.image: nan must lie in (-inf, inf)"),
        (
            ["--guidance", "sound=2"],
            "sampling.guidance.sound: nothing that is generated; known are gate, rate, tokens, image",
        ),
        (
            ["--guidance-from", "0.75", "--guidance-until", "0.5"],
            "sampling.guidance_from (0.75) is later than sampling.guidance_until (0.5); swap them",
        ),
        (
            ["--solver", "heun", "--churn", "1"],
            'sampling.churn: is 1.0, but sampling.solver is "heun"; set it to 0, or take "euler"',
        ),
        (["--top-p", "0"], "--top-p: 0.0 must lie in (0, 1]"),
        (
            ["--text", "a" * 20, "--max-rows", "4"],
            "--max-rows: 4, but the prompt alone takes 21 rows; raise it, or shorten the prompt",
        ),
        (["--codec", "image=nowhere"], 'nowhere: no such folder; name one with a saved AutoencoderKL, or "pixels"'),
        (["--codec", "smell=pixels"], "--codec: 'smell=pixels' is not NAME=FOLDER of a modality (image)"),
        (
            ["--given", "features", "--image", str(ROOT / "docs/gallery.png")],
            "--given: wants features, but no [modality.*] has `understanding`; add one, or take latents",
        ),
    ],
)
def test_what_cannot_be_sampled_is_refused_before_anything_is_written(
    arguments: list[str], message: str, sample: Sample, tmp_path: Path
) -> None:
    end = sample(tmp_path / "out", *arguments)
    assert (end.code, only_error(end)) == (2, f"error: {message}")
    assert "generating" not in end.stderr
    assert not (tmp_path / "out").exists()


def test_without_a_checkpoint_there_is_nothing_to_sample_from(launcher: Launcher, tmp_path: Path) -> None:
    end = launcher.run("tools/sample.py", tmp_path, tmp_path / "out")
    assert (end.code, end.stderr) == (
        2,
        f"error: {tmp_path}: no complete checkpoint here or in its checkpoints/; train first, or name another folder\n",
    )
    assert list(tmp_path.iterdir()) == []
