from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from oneflow_dist.data.index import index_tar
from oneflow_dist.data.latents import decode_array, encode_array
from oneflow_dist.data.tar import scan_tar
from oneflow_dist.model.autoencoder import load_autoencoder
from oneflow_dist.precompute.verify import check_output
from oneflow_dist.precompute.writer import TarWriter
from tests.messages import names
from tests.precompute.making import read_tar, run, save_autoencoder, save_siglip, write_shards

NAME = "raw-01.tar"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    vae = save_autoencoder(folder / "vae")
    shards, features = write_shards(folder / "raw", num_shards=2, samples=3), str(save_siglip(folder / "tiny"))
    run(shards, folder / "out", autoencoder=str(vae), features=features, mirror=True)
    return folder


@pytest.fixture
def output(made: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(made / "out", tmp_path / "out"))


def problems(folder: Path) -> dict[str, str]:
    return {verdict.name: verdict.problem for verdict in check_output(folder, None) if verdict.problem}


def rewrite(path: Path, change: Callable[[dict[str, bytes]], object]) -> None:
    """Change what a shard holds, and all that is said of it with it."""
    files = read_tar(path)
    with path.open("rb") as file:
        header = scan_tar(file, path.stat().st_size).header
    change(files)
    with path.open("wb") as out:
        writer = TarWriter(out, header)
        for name, content in files.items():
            key, _, extension = name.partition(".")
            writer.add(key, extension, content)
        writer.close()
    index = index_tar(path, "changed")
    path.with_name(f"{path.name}.index").write_bytes(index)
    sha256, num_bytes = json.loads(index[: index.index(b"\n")])["tar_sha256"], path.stat().st_size
    report_path, manifest_path = path.with_name(f"{path.name}.report.json"), path.with_name("manifest.json")
    report, manifest = json.loads(report_path.read_text()), json.loads(manifest_path.read_text())
    report["output"] |= {"sha256": sha256, "bytes": num_bytes}
    for shard in manifest["shards"]:
        if shard["name"] == path.name:
            shard |= {"sha256": sha256, "bytes": num_bytes}
    report_path.write_text(json.dumps(report))
    manifest_path.write_text(json.dumps(manifest))


def change_array(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[dict[str, bytes]], object]:
    def apply(files: dict[str, bytes]) -> None:
        files[name] = encode_array(change(decode_array(files[name], name).copy()))

    return apply


def poke(value: float, place: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    def apply(array: np.ndarray) -> np.ndarray:
        array.reshape(len(array), -1)[place, 0] = value
        return array

    return apply


def test_a_whole_output_is_good(made: Path) -> None:
    verdicts = check_output(made / "out", load_autoencoder(str(made / "vae"), "cpu", torch.float32))
    assert [(one.name, one.samples, one.images, one.problem) for one in verdicts] == [
        ("raw-00.tar", 5, 5, None),
        ("raw-01.tar", 5, 5, None),
    ]
    assert all(0 < one.largest < 100 for one in verdicts)


def test_a_flipped_byte_is_found(output: Path) -> None:
    content = bytearray((output / NAME).read_bytes())
    content[len(content) // 2] ^= 1
    (output / NAME).write_bytes(bytes(content))
    assert problems(output).keys() == {NAME}
    assert names(problems(output)[NAME], len(content), "sha256")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (change_array("003.npy", poke(np.nan)), ("003.npy", 1, 480, "float16")),
        (change_array("003.mirrored.npy", poke(-1.0, 1)), ("003.mirrored.npy", -1)),
        (change_array("003.npy", poke(5000.0)), ("003.npy", 5000)),
        (change_array("003.npy", lambda a: a[:, :3]), ("003.npy", "float16 [2, 3, ")),
        (change_array("003.npy", lambda a: a.astype(np.float32)), ("003.npy", "float32 [2, 4, ")),
        (change_array("003.tokens.npy", poke(2)), ("003.tokens.npy", 18)),
        (change_array("003.tokens.npy", lambda a: a[:-1]), ("003.tokens.npy", 17)),
        (change_array("003.tokens.npy", lambda a: np.array([0], dtype=np.int32)), ("003.tokens.npy", 0, 1)),
        (change_array("003.tokens.npy", poke(262, slice(2, 3))), ("003.tokens.npy", 262)),  # type: ignore[arg-type]
        (lambda files: files.pop("003.tokens.npy"), ("003.tokens.npy",)),
        (lambda files: files.pop("003.mirrored.npy"), ("003.mirrored.npy",)),
        (lambda files: files.pop("003.features.npy"), ("003.features.npy",)),
        (change_array("003.features.npy", poke(np.inf)), ("003.features.npy", 1, 64, "float16")),
        (
            change_array("003.features.npy", lambda a: a.reshape(4, 16)),
            ("003.features.npy", "float16 [4, 16]", "settings.json", "float16 [16, 2, 2]"),
        ),
        (
            change_array("003.features.npy", lambda a: a.astype(np.float32)),
            ("003.features.npy", "float32 [16, 2, 2]", "settings.json", "float16 [16, 2, 2]"),
        ),
        (lambda files: files.update({"003.npy": b"\x93NUMPY"}), ("003.npy",)),
        (
            lambda files: [files.pop(name) for name in list(files) if name.startswith("003.")],
            ("'written': 4", "'images': 4", "'written': 5", "'images': 5"),
        ),
    ],
)
def test_content_that_cannot_be_right_is_found(
    change: Callable[[dict[str, bytes]], object], named: tuple[object, ...], output: Path
) -> None:
    rewrite(output / NAME, change)
    found = problems(output)
    assert found.keys() == {NAME}
    assert names(found[NAME], *named)


def test_files_that_are_missing_or_of_others_are_found(output: Path) -> None:
    index = output / f"{NAME}.index"
    index.unlink()
    without = problems(output)
    index.write_bytes((output / "raw-00.tar.index").read_bytes())
    of_another = problems(output)
    assert without.keys() == of_another.keys() == {NAME}
    assert without != of_another
    assert all(names(found[NAME], index.name) for found in (without, of_another))
    (output / f"{NAME}.report.json").unlink()
    assert names(problems(output)[NAME], f"{NAME}.report.json")
    (output / NAME).unlink()
    assert problems(output).keys() == {NAME}


def test_a_shard_of_other_settings_is_found(made: Path, output: Path, tmp_path: Path) -> None:
    raw = sorted((made / "raw").iterdir())
    run(raw, tmp_path / "other", autoencoder=str(made / "vae"), mirror=True, size=8)
    for path in (tmp_path / "other").glob(f"{NAME}*"):
        shutil.copy(path, output / path.name)
    manifest, other = (json.loads((folder / "manifest.json").read_text()) for folder in (output, tmp_path / "other"))
    manifest["shards"][1] = other["shards"][1]
    (output / "manifest.json").write_text(json.dumps(manifest))
    found = problems(output)
    assert found.keys() == {NAME}
    assert names(found[NAME], "settings.json", "crop")


def refusal(folder: Path, autoencoder: str | None = None) -> str:
    model = load_autoencoder(autoencoder, "cpu", torch.float32) if autoencoder else None
    with pytest.raises(ValueError) as error:
        check_output(folder, model)
    return str(error.value)


def test_lists_that_do_not_agree_are_refused(output: Path) -> None:
    (output / "quarantine.jsonl").write_text("{}\n")
    assert names(refusal(output), output, "quarantine.jsonl", "manifest.json")
    manifest = json.loads((output / "manifest.json").read_text())
    (output / "manifest.json").write_text(json.dumps({**manifest, "totals": {**manifest["totals"], "images": 3}}))
    assert names(refusal(output), output, "manifest.json", 3, 10)
    (output / "manifest.json").unlink()
    assert names(refusal(output), output, "manifest.json")


def test_another_autoencoder_is_refused_with_both_hashes(output: Path) -> None:
    stored = json.loads((output / "settings.json").read_text())["autoencoder"]["config_sha256"]
    given = load_autoencoder("pixels", "cpu", torch.float32).config_sha256
    assert names(refusal(output, "pixels"), "--autoencoder", "config_sha256", given, output, stored)
