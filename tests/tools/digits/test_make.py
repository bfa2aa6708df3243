from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oneflow_dist.data.tokenizer import load_tokenizer
from tests.launching import Launcher, only_error, run_main
from tests.precompute.making import contents
from tests.tars import samples_of
from tools.digits import make as program
from tools.digits.grammar import CAPTIONS, MAX_COUNT, WORDS, load_split, read_caption, read_count

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Runs the tool in this process."""

    def run(*arguments: str, folder: Path | None = None) -> Path:
        folder = folder or tmp_path_factory.mktemp("made") / "digits"
        run_main(program, folder, *arguments)
        return folder

    return run


@pytest.fixture(scope="module")
def made(make: Make) -> Path:
    return make("--documents", "64")


def images_of(files: dict[str, bytes]) -> list[bytes]:
    """The pixels of a sample's images."""
    return [pixels_of(data) for name, data in sorted(files.items()) if name.endswith("png")]


def pixels_of(png: bytes) -> bytes:
    with Image.open(io.BytesIO(png)) as picture:
        assert (picture.mode, picture.size) == ("L", (8, 8))
        return np.asarray(picture).tobytes()


def test_a_folder_holds_shards_of_both_splits_and_the_vocabulary(made: Path) -> None:
    assert sorted(contents(made)) == [
        "count-heldout-000000.tar",
        "count-train-000000.tar",
        "seven.png",
        "single-heldout-000000.tar",
        "single-train-000000.tar",
        "single-train-000001.tar",
        "words.tiktoken",
    ]
    assert load_tokenizer(str(made / "words.tiktoken")).vocab_size <= 512


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(made: Path, make: Make) -> None:
    again, other = make("--documents", "64"), make("--documents", "64", "--seed", "1")
    assert contents(again) == contents(made)
    assert contents(other).keys() == contents(made).keys()
    same = {name for name, data in contents(other).items() if data == contents(made)[name]}
    assert same <= {"seven.png", "words.tiktoken"}


def test_writing_again_changes_nothing(made: Path, make: Make) -> None:
    before = contents(made)
    make("--documents", "64", folder=made)
    assert contents(made) == before


def test_fewer_documents_leave_no_shards_of_an_earlier_call(make: Make) -> None:
    folder = make("--documents", "1030")
    assert (folder / "count-train-000001.tar").exists()
    make("--documents", "64", folder=folder)
    assert len(samples_of(*folder.glob("count-train-*.tar"))) == 64


def test_training_shards_hold_no_image_that_is_held_out(made: Path) -> None:
    train, heldout = ({image.tobytes() for image in load_split(split)[0]} for split in ("train", "heldout"))
    assert not train & heldout
    for split, allowed in (("train", train), ("heldout", heldout)):
        found = {image for files in samples_of(*made.glob(f"*-{split}-*.tar")) for image in images_of(files)}
        assert found <= allowed
        assert len(found) > 0.9 * len(allowed)


def test_there_is_a_seven_to_describe_that_no_model_is_trained_on(made: Path) -> None:
    images, labels = load_split("heldout")
    assert pixels_of((made / "seven.png").read_bytes()) in {image.tobytes() for image in images[labels == 7]}


def test_a_caption_names_its_digit(made: Path) -> None:
    images, labels = load_split("train")
    pairs = samples_of(*sorted(made.glob("single-train-*.tar")))
    assert len(pairs) == len(images) == 1438
    for files, image, label in zip(pairs, images, labels, strict=True):
        assert read_caption(files["txt"].decode()) == json.loads(files["json"])["digit"] == label
        assert pixels_of(files["png"]) == image.tobytes()
    captions = {files["txt"].decode() for files in pairs}
    assert captions == {caption.format(word) for caption in CAPTIONS for word in WORDS}


def test_documents_count_up_and_their_images_show_their_words(made: Path) -> None:
    images, labels = load_split("train")
    label_of = {image.tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    documents = samples_of(made / "count-train-000000.tar")
    assert len(documents) == 64
    lengths = set()
    for files in documents:
        segments = json.loads(files["json"])["segments"]
        assert [segment["type"] for segment in segments] == ["text", "image"] * (len(segments) // 2)
        digits = read_count([segment["text"].removeprefix(" ") for segment in segments[::2]])
        assert digits is not None
        shown = [label_of[pixels_of(files[segment["image"]])] for segment in segments[1::2]]
        assert shown == digits
        lengths.add(len(digits))
    assert lengths == set(range(1, MAX_COUNT + 1))


def test_without_documents_there_is_nothing_to_count(launcher: Launcher, tmp_path: Path) -> None:
    end = launcher.run("tools/digits/make.py", tmp_path / "digits", "--documents", "0")
    assert (end.code, only_error(end)) == (2, "error: --documents: 0 must lie in [1, inf)")
    assert not (tmp_path / "digits").exists()


def test_a_write_that_fails_leaves_no_shard_that_looks_whole(launcher: Launcher, tmp_path: Path) -> None:
    end = launcher.run("tools/digits/make.py", tmp_path, "--documents", "64", file_limit=500_000)
    assert end.code == 2
    assert only_error(end).startswith("error: ")
    for shard in tmp_path.glob("*.tar"):
        subprocess.run(["tar", "-tf", shard], check=True, capture_output=True)
    assert not (tmp_path / "words.tiktoken").exists()  # written last: it stands for all
