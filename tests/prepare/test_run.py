from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from oneflow_dist.config import load_config
from oneflow_dist.data.mixture import load_mixture
from oneflow_dist.data.shards import open_shards
from oneflow_dist.prepare import run as preparing
from oneflow_dist.prepare.items import Blob, Item, Source
from tests.messages import names, refused
from tests.precompute.making import save_autoencoder
from tests.prepare.nasty import store
from tests.prepare.prepared import contents, read_lines, run, scene, write_pairs


@pytest.fixture
def offer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[list[Item]], Path]:
    """Makes a folder hold these items, whatever layout that would be."""

    def make(items: list[Item]) -> Path:
        source = Source(kind="items", items=items, unread={})
        monkeypatch.setattr(preparing, "open_source", lambda *_: source)
        folder = tmp_path / "in"
        folder.mkdir(exist_ok=True)
        return folder

    return make


def blob(seed: int) -> Blob:
    return Blob(name=f"{seed}.png", path=Path("/dev/null"), content=store(scene(seed), "PNG"))


def pair(number: int, *captions: str, **others: Any) -> Item:
    return Item(name=f"{number:03d}.png", parts=(blob(number),), captions=captions or (f"thing {number}",), **others)


def test_each_kind_becomes_a_source_of_its_own(offer: Callable[[list[Item]], Path], tmp_path: Path) -> None:
    documents = [Item(name=f"d{n}", parts=("see", blob(100 + n), f"this {n}")) for n in range(24)]
    turns = [(("user", (blob(200 + n), "what?")), ("assistant", (f"it is {n}",))) for n in range(24)]
    talks = [Item(name=f"c{n}", turns=turn) for n, turn in enumerate(turns)]
    texts = [Item(name=f"t{n}", parts=(f"a text {n}",)) for n in range(24)]
    alone = [Item(name=f"p{n}", parts=(blob(300 + n),)) for n in range(24)]
    source = offer([*(pair(n) for n in range(24)), *documents, *talks, *texts, *alone])
    summary = run(source, tmp_path / "out", held_out=0.1)
    for mixture in ("mixture.yaml", "heldout.yaml"):
        sources = load_mixture(str(tmp_path / "out" / mixture))
        assert [one.name for one in sources] == ["pairs", "pictures", "documents", "conversations", "texts"]
    config = load_config(tmp_path / "out/config.toml")
    assert config.data.max_sample_rows <= config.data.rows_per_pack
    assert "120 items, of which 0 have problems" in summary


def test_several_captions_are_fields_that_the_mixture_names(
    offer: Callable[[list[Item]], Path], tmp_path: Path
) -> None:
    run(offer([pair(1, "one", "two"), pair(2, "three")]), tmp_path / "out")
    (source,) = load_mixture(str(tmp_path / "out/mixture.yaml"))
    assert source.captions == {"txt": 1, "caption_2": 1}
    shards = open_shards("pairs", source.shards)
    assert [json.loads(shards.read(n).files["json"])["caption_2"] for n in range(2)] == ["two", "three"]


def test_near_duplicates_are_listed_and_dropped_on_demand(offer: Callable[[list[Item]], Path], tmp_path: Path) -> None:
    twin = Item(name="twin.png", parts=(blob(1),), captions=("again",))
    source = offer([*(pair(n) for n in range(4)), twin])
    run(source, tmp_path / "kept")
    assert read_lines(tmp_path / "kept/duplicates.jsonl") == [{"names": ["001.png", "twin.png"]}]
    run(source, tmp_path / "dropped", drop_duplicates=True)
    sizes = [len(open_shards("pairs", f"{tmp_path}/{name}/train-*.tar")) for name in ("kept", "dropped")]
    assert sizes == [5, 4]


def test_more_than_half_bad_is_an_error_after_the_list(offer: Callable[[list[Item]], Path], tmp_path: Path) -> None:
    bad = [Item(name=f"{n}.png", problem="its picture does not exist") for n in range(3)]
    message = refused(run, offer([pair(5), pair(6), *bad]), tmp_path / "out")
    assert names(message, "problems.jsonl", "3", "5", "0.png")
    assert [line["name"] for line in read_lines(tmp_path / "out/problems.jsonl")] == ["0.png", "1.png", "2.png"]
    assert not list((tmp_path / "out").glob("*.tar"))


def test_pictures_alone_need_no_vocabulary(offer: Callable[[list[Item]], Path], tmp_path: Path) -> None:
    run(offer([Item(name=f"p{n}", parts=(blob(n),)) for n in range(6)]), tmp_path / "out", held_out=0.0)
    config = load_config(tmp_path / "out/config.toml")
    assert (config.data.tokenizer, config.sampling.prompts) == ("bytes", ("<|image|>",))
    assert not (tmp_path / "out/words.tiktoken").exists()
    assert not (tmp_path / "out/heldout.yaml").exists()


def test_pictures_are_cut_to_buckets_that_patches_fill(offer: Callable[[list[Item]], Path], tmp_path: Path) -> None:
    wide = Blob(name="wide.png", path=Path("/dev/null"), content=store(scene(9, 96, 40), "PNG"))
    source = offer([pair(1), Item(name="wide.png", parts=(wide,), captions=("wide",))])
    run(source, tmp_path / "out", max_aspect=3.0)
    shards = open_shards("pairs", f"{tmp_path}/out/train-*.tar")
    sizes = []
    for number in range(2):
        with Image.open(io.BytesIO(shards.read(number).files["png"])) as picture:
            sizes.append(picture.size)
    assert sizes == [(16, 16), (24, 8)]


def test_an_autoencoder_makes_latents_of_all_that_was_prepared(tmp_path: Path) -> None:
    autoencoder = save_autoencoder(tmp_path / "vae")
    source = write_pairs(tmp_path / "in", 24)
    run(source, tmp_path / "out", autoencoder=str(autoencoder), held_out=0.2)
    config = load_config(tmp_path / "out/config.toml")
    image = config.modality["image"]
    assert (image.channels, image.shape, image.patch, image.codec) == (4, (8, 8), (2, 2), str(autoencoder))
    for mixture in ("mixture.yaml", "heldout.yaml"):
        (one,) = load_mixture(str(tmp_path / "out" / mixture))
        assert "/latents/" in one.shards
        record = open_shards("pairs", one.shards).read(0)
        assert {"npy", "tokens.npy"} <= record.files.keys()
        assert record.header["crop"]["size"] == 16


def test_a_named_tokenizer_is_used_and_none_is_learned(tmp_path: Path) -> None:
    source = write_pairs(tmp_path / "in", 4)
    run(source, tmp_path / "first")
    words = shutil.copy(tmp_path / "first/words.tiktoken", tmp_path / "own.tiktoken")
    run(source, tmp_path / "out", tokenizer=str(words))
    assert load_config(tmp_path / "out/config.toml").data.tokenizer == str(words)
    assert "words.tiktoken" not in contents(tmp_path / "out")
