from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from oneflow_dist.data.identity import check_decoder, compare_data, describe_data, name_latents
from oneflow_dist.data.mixture import load_mixture
from oneflow_dist.data.shards import open_shards
from oneflow_dist.data.tokenizer import load_tokenizer, write_ranks
from oneflow_dist.modality import Modalities
from oneflow_dist.precompute.writer import TarWriter
from tests.messages import naming
from tests.pieces import SOUND, VIDEO, modality
from tests.tars import write_tar

VAE = {"name": "vae", "config_sha256": "c", "weights_sha256": "w", "scaling_factor": 1.5, "shift_factor": 0.1}


def write_latents(path: Path, autoencoder: dict[str, Any], text: str = "a text") -> Path:
    """A shard whose header names an autoencoder; nothing here reads the latent."""
    with path.open("w+b") as file:
        tar = TarWriter(file, {"autoencoder": autoencoder})
        tar.add("0", "npy", b"a latent")
        tar.add("0", "txt", text.encode())
        tar.close()
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        write_tar(tmp_path / f"{name}.tar", {f"{n}.txt": f"{name} {n}".encode() for n in range(6)})
    return tmp_path


def describe(
    folder: Path, *entries: str, tokenizer: str = "bytes", modalities: Modalities | None = None
) -> dict[str, Any]:
    """The identity of a mixture of `name: shards, weight, tasks`, as a checkpoint stores it."""
    (folder / "mixture.yaml").write_text("sources:\n" + "".join(f"  {entry}\n" for entry in entries))
    sources = load_mixture(str(folder / "mixture.yaml"))
    shards = [open_shards(source.name, source.shards, source.index) for source in sources]
    return dict(json.loads(json.dumps(describe_data(sources, shards, load_tokenizer(tokenizer, modalities)))))


def entry(folder: Path, name: str, shard: str, weight: float = 1.0, more: str = "") -> str:
    return f"{name}: {{shards: '{folder}/{shard}.tar', weight: {weight}, tasks: {{text_only: 1}}{more}}}"


def test_the_same_data_have_nothing_to_tell_wherever_they_are_read_from(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = entry(folder, "one", "a"), entry(folder, "two", "b", 3)
    before = describe(folder, *entries)
    monkeypatch.chdir(folder)
    assert compare_data(before, describe(folder, *entries)) == []
    assert compare_data(before, describe(folder, *reversed(entries))) == []  # names count, places do not
    assert compare_data({}, before) == []  # weights that a run starts from have seen no data


def test_what_changes_the_course_alone_is_told_by_source(folder: Path) -> None:
    before = describe(folder, entry(folder, "one", "a"), entry(folder, "two", "b"))
    now = describe(folder, entry(folder, "one", "a", 3, ", prompt: 'Say:'"), entry(folder, "three", "c"))
    told = compare_data(before, now)
    assert [line.partition(":")[0] for line in told] == ["source one", "source one", "source two", "source three"]
    assert "prompt" in told[0]
    assert told[1] == "source one: 0.75 of the samples, before 0.5"
    assert "no longer in the mixture" in told[2]
    assert "new in the mixture" in told[3]


def test_a_shard_that_was_written_again_is_told(folder: Path) -> None:
    before = describe(folder, entry(folder, "one", "a"))
    write_tar(folder / "a.tar", {f"{n}.txt": f"A {n}".encode() for n in range(6)})  # of the same size
    (folder / "a.tar.index").unlink()
    (line,) = compare_data(before, describe(folder, entry(folder, "one", "a")))
    assert line.startswith("source one: its shards are others (1 shards, 6 samples; now 1, 6)")


def test_another_vocabulary_is_refused(folder: Path) -> None:
    ranks = {bytes([value]): value for value in range(256)}
    write_ranks(folder / "one.tiktoken", ranks | {b"ab": 256, b"cd": 257})
    write_ranks(folder / "other.tiktoken", ranks | {b"cd": 256, b"ab": 257})
    before, now = (
        describe(folder, entry(folder, "one", "a"), tokenizer=str(folder / f"{name}.tiktoken"))
        for name in ("one", "other")
    )
    with pytest.raises(ValueError, match=r"^data\.tokenizer: the checkpoint's token ids are of another ranks file"):
        compare_data(before, now)


MIXED = {"image": modality(), "sound": SOUND, "video": VIDEO}


def test_a_modality_whose_token_has_another_id_is_refused(folder: Path) -> None:
    """Two modalities in another order, or a new one before an old."""
    own = entry(folder, "one", "a")
    before = describe(folder, own, modalities={"image": modality(), "sound": SOUND})
    for now in ({"sound": SOUND, "image": modality()}, MIXED, {"sound": SOUND}):
        assert compare_data(before, describe(folder, own, modalities=now)) == []
    for now in ({"video": VIDEO, "sound": SOUND}, {"image": modality(), "video": VIDEO, "sound": SOUND}):
        with pytest.raises(ValueError, match=naming("modality.sound.token", 262, 263)):
            compare_data(before, describe(folder, own, modalities=now))


def test_only_pictures_and_what_is_named_after_no_modality_are_of_an_autoencoder(folder: Path) -> None:
    """Sounds, moving pictures and arrays of values may stand beside the latents of any."""
    write_latents(folder / "latents.tar", VAE)
    write_tar(folder / "others.tar", {"0.wav": b"", "0.0.apng": b"", "0.1.sound.npy": b"", "0.1.tokens.npy": b""})
    entries = entry(folder, "one", "latents"), entry(folder, "two", "others")
    assert describe(folder, *entries, modalities=MIXED)["latents"]["name"] == "vae"
    assert describe(folder, entries[1], modalities=MIXED)["latents"] == {}
    with pytest.raises(ValueError, match=naming("vae", "pixels")):
        describe(folder, *entries, modalities={"image": modality()})  # what is called sound is a picture then


def latents_of(folder: Path, autoencoder: dict[str, Any]) -> dict[str, Any]:
    write_latents(folder / "latents.tar", autoencoder)
    (folder / "latents.tar.index").unlink(missing_ok=True)
    return describe(folder, entry(folder, "images", "latents"))


@pytest.mark.parametrize("key", ["config_sha256", "weights_sha256", "scaling_factor", "shift_factor"])
def test_latents_of_another_autoencoder_are_refused(key: str, folder: Path) -> None:
    before, now = latents_of(folder, VAE), latents_of(folder, VAE | {key: 0.25})
    with pytest.raises(ValueError, match=r"^data\.mixture: the checkpoint was trained on latents of vae \("):
        compare_data(before, now)


def test_the_same_autoencoder_under_another_name_is_the_same(folder: Path) -> None:
    before, now = latents_of(folder, VAE), latents_of(folder, VAE | {"name": "a copy"})
    assert [line for line in compare_data(before, now) if "shards are others" not in line] == []


def test_a_run_has_the_latents_of_one_autoencoder(folder: Path) -> None:
    write_latents(folder / "latents.tar", VAE)
    write_tar(folder / "pixels.tar", {"0.png": b"a picture", "0.txt": b"a text"})
    with pytest.raises(ValueError) as error:
        describe(folder, entry(folder, "one", "latents"), entry(folder, "two", "pixels"))
    assert str(error.value).startswith(f"source one, {folder}/latents.tar: images as latents of vae (")
    assert f"in source two, {folder}/pixels.tar of pixels; " in str(error.value)


def test_pictures_are_made_by_the_autoencoder_of_the_data(folder: Path) -> None:
    data = latents_of(folder, VAE)
    check_decoder(data, "image", "models/vae", VAE)
    check_decoder(describe(folder, entry(folder, "one", "a")), "image", "models/vae", VAE)  # there are no images
    with pytest.raises(ValueError, match=r"^modality\.image\.codec: models/other \("):
        check_decoder(data, "image", "models/other", VAE | {"weights_sha256": "others"})
    with pytest.raises(ValueError, match=r"^modality\.drawing\.codec: pixels \("):
        check_decoder(data, "drawing", "pixels", {"name": "pixels"})


def test_a_name_of_latents_is_that_of_all_that_they_depend_on() -> None:
    changed = copy.deepcopy(VAE) | {"channels": 7, "name": "other"}  # what a checkpoint compares anyway
    assert name_latents(changed)["sha256"] == name_latents(VAE)["sha256"]
