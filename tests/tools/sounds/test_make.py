from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from oneflow_dist.data.moving import encode_frames
from oneflow_dist.data.sound import encode_sound
from oneflow_dist.data.tokenizer import load_tokenizer
from tests.launching import run_main
from tests.precompute.making import contents
from tests.tars import samples_of
from tools.digits.grammar import WORDS, load_split
from tools.sounds import make as program
from tools.sounds.judging import find_picture, read_sounds
from tools.sounds.variations import BANDS, FRAMES, RATE, STEPS

Make = Callable[..., Path]
Sample = dict[str, bytes]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Runs the tool in this process."""

    def run(*arguments: str) -> Path:
        folder = tmp_path_factory.mktemp("made") / "sounds"
        run_main(program, folder, *arguments)
        return folder

    return run


@pytest.fixture(scope="module")
def made(make: Make) -> Path:
    return make("--documents", "96")


def samples(folder: Path, name: str) -> list[Sample]:
    return samples_of(folder / f"{name}-000000.tar")


def pictures_in(files: Sample) -> list[np.ndarray]:
    """Latents of the pictures of a sample, standing and moving."""
    found = []
    for name, data in files.items():
        if name.endswith("png"):
            latent = encode_frames(data, "L", name)
            assert latent.shape == (1, STEPS if name.endswith("apng") else 1, 8, 8)
            picture, error = find_picture(latent)
            assert error < 1e-6
            found.append(picture)
    return found


def sounds_in(files: Sample) -> list[np.ndarray]:
    return [encode_sound(data, RATE, BANDS, name) for name, data in files.items() if name.endswith("wav")]


def test_a_folder_holds_shards_of_both_splits_and_the_vocabulary(made: Path) -> None:
    assert sorted(contents(made)) == [
        "pair-heldout-000000.tar",
        "pair-train-000000.tar",
        "seven.apng",
        "seven.png",
        "seven.wav",
        "together-heldout-000000.tar",
        "together-train-000000.tar",
        "words.tiktoken",
    ]
    assert [len(samples(made, f"together-{split}")) for split in ("train", "heldout")] == [96, 12]


def test_every_word_is_a_token_with_a_blank_before_it_and_without(made: Path) -> None:
    tokenizer = load_tokenizer(str(made / "words.tiktoken"))
    assert tokenizer.vocab_size <= 512
    for word in WORDS:
        assert len(tokenizer.encode(word)) == len(tokenizer.encode(f" {word}")) == 1


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(made: Path, make: Make) -> None:
    assert contents(make("--documents", "96")) == contents(made)
    other = contents(make("--documents", "96", "--seed", "1"))
    same = {name for name, data in other.items() if data == contents(made)[name]}
    assert same <= {"words.tiktoken"}


def test_more_documents_begin_with_the_same_ones(made: Path, make: Make) -> None:
    more = make("--documents", "100")
    for name in ("together-train", "pair-train"):
        assert samples(more, name)[:96] == samples(made, name)


def test_a_document_names_its_digit_in_four_ways_in_any_order(made: Path) -> None:
    orders, digits, sounds = Counter(), [], []
    for files in samples(made, "together-train"):
        fields = json.loads(files["json"])
        segments = fields["segments"]
        orders[tuple(segment["type"] for segment in segments)] += 1
        by_kind = {segment["type"]: segment[segment["type"]] for segment in segments}
        assert by_kind.keys() == {"text", "image", "sound", "video"}
        assert by_kind["text"] == f" {WORDS[fields['digit']]}"
        assert files.keys() == {"json", by_kind["image"], by_kind["sound"], by_kind["video"]}
        digits.append(fields["digit"])
        sounds += sounds_in(files)
    assert {sound.shape for sound in sounds} == {(BANDS, FRAMES)}
    assert (read_sounds(sounds) == digits).mean() >= 0.98
    assert set(digits) == set(range(10))
    assert len(orders) > 18  # of 24


def test_a_pair_is_a_word_and_one_of_the_rest(made: Path) -> None:
    kinds = Counter()
    for files in samples(made, "pair-train"):
        segments = json.loads(files["json"])["segments"]
        kinds[tuple(segment["type"] for segment in segments)] += 1
        assert len(files) == 2
    assert set(kinds) == {("text", kind) for kind in ("image", "sound", "video")}
    assert min(kinds.values()) > 20


def test_pictures_show_the_digit_and_are_of_their_split(made: Path) -> None:
    for split, other in (("train", "heldout"), ("heldout", "train")):
        images, labels = load_split(split)
        label_of = {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
        others = {image.tobytes() for image in load_split(other)[0]}
        seen = set()
        for files in samples(made, f"together-{split}") + samples(made, f"pair-{split}"):
            for latent in pictures_in(files):
                pixels = np.rint((latent[0] + 1) * 127.5).astype(np.uint8).tobytes()
                assert label_of[pixels] == json.loads(files["json"])["digit"]
                seen.add(pixels)
        assert not seen & others
        assert len(seen) > 20


def test_the_seven_is_a_seven(made: Path) -> None:
    files = {name: data for name, data in contents(made).items() if name.startswith("seven")}
    assert read_sounds(sounds_in(files)).tolist() == [7]
    images, labels = load_split("heldout")
    sevens = {image.tobytes() for image in images[labels == 7]}
    for latent in pictures_in(files):
        assert np.rint((latent[0] + 1) * 127.5).astype(np.uint8).tobytes() in sevens


def test_without_documents_there_is_nothing_to_write(make: Make) -> None:
    with pytest.raises(ValueError, match=r"--documents: 0 must lie in \[1, inf\)"):
        make("--documents", "0")
