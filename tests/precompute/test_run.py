from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from oneflow_dist.config import Config
from oneflow_dist.data.decoding import Reading, decode_record, read_fields
from oneflow_dist.data.samples import make_sample as to_sample
from oneflow_dist.data.shards import open_shards
from oneflow_dist.data.tokenizer import load_tokenizer
from oneflow_dist.model.autoencoder import Autoencoder
from oneflow_dist.precompute import run as run_module
from oneflow_dist.precompute.run import ahead, in_order
from oneflow_dist.precompute.verify import check_output
from tests.messages import names, naming
from tests.pieces import SOUND, VIDEO, modality
from tests.precompute.making import (
    apng,
    contents,
    document,
    encode,
    pair,
    picture,
    png,
    png_of_size,
    read_tar,
    reasons,
    run,
    save_autoencoder,
    show,
    wav,
    write_shards,
    write_tar,
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_shards(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_autoencoder(tmp_path_factory.mktemp("models") / "vae"))


@pytest.fixture(scope="module")
def unbroken(shards: list[Path], vae: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of an output that one process wrote without a stop."""
    folder = tmp_path_factory.mktemp("unbroken") / "out"
    run(shards, folder, autoencoder=vae, mirror=True)
    return contents(folder)


def faulty_files() -> tuple[list[tuple[str, bytes]], dict[str, tuple[object, ...]]]:
    """Thirteen good samples, then one of every fault, and what is to be named of it."""
    bad_crc = bytearray(png(0, 32, 32))
    bad_crc[bad_crc.index(b"IEND") - 6] ^= 1
    jpeg = encode(picture(0, 64, 64), "JPEG")
    image = {"type": "image", "image": "0.png"}
    files = [file for number in range(11) for file in pair(number)] + document(0) + show(0)
    faults: list[tuple[str, dict[str, bytes], tuple[object, ...]]] = [
        ("zero", {"png": b"", "txt": b"x"}, ("png", 0)),
        ("noise", {"jpg": b"\xff\xd8 noise", "txt": b"x"}, ("jpg", "PNG", "JPEG", "WebP")),
        ("cut", {"jpg": jpeg[: len(jpeg) // 2], "txt": b"x"}, ("jpg",)),
        ("crc", {"png": bytes(bad_crc), "txt": b"x"}, ("png", "IDAT")),
        ("bomb", {"png": png_of_size(40_000, 40_000), "txt": b"x"}, ("png", "40000x40000", 67108864)),
        ("mute", {"png": png(0)}, ("--allow-missing-text",)),
        ("blank", {"png": png(0), "txt": b" \n"}, ()),
        ("json", {"json": b'{"segments": [', "0.png": png(0)}, ("json",)),
        ("lost", {"json": json.dumps({"segments": [image]}).encode()}, (1, 0, 0)),
        ("pickle", {"png": png(0), "txt": b"x", "pt": b"x"}, ("pt",)),
        ("../evil", {"txt": b"x"}, ("../evil.txt",)),
        ("deaf", {"wav": wav()[:-9], "txt": b"x"}, ("wav",)),
        ("still", {"apng": apng()[:-40], "txt": b"x"}, ("apng",)),
        ("nan", {"png": png(77, 16, 16), "txt": b"x"}, ("npy", 768, 1536, "float16")),
    ]
    for key, members, _ in faults:
        files += [(f"{key}.{extension}", content) for extension, content in members.items()]
    return files, {key: named for key, _, named in faults}


def poison(monkeypatch: pytest.MonkeyPatch, victim: np.ndarray) -> None:
    """Make the autoencoder say NaN of one picture."""
    encode_well = Autoencoder.encode
    target = torch.from_numpy(victim.copy()).permute(2, 0, 1).float() / 127.5 - 1.0

    def encode_badly(self: Autoencoder, images: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = encode_well(self, images)
        is_victim = torch.tensor([torch.equal(one, target) for one in images])
        return torch.where(is_victim[:, None, None, None], torch.full_like(mean, torch.nan), mean), std

    monkeypatch.setattr(Autoencoder, "encode", encode_badly)


def test_every_good_sample_comes_through_and_every_bad_one_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, expected = faulty_files()
    poison(monkeypatch, np.asarray(picture(77, 16, 16)))
    shard = write_tar(tmp_path / "raw.tar", files)
    summary = run([shard], tmp_path / "out", max_bad=0.6)
    found = reasons(tmp_path / "out")
    assert found.keys() == expected.keys()
    for name, named in expected.items():
        assert names(found[name], *named)
    keys = {name.partition(".")[0] for name in read_tar(tmp_path / "out" / "raw.tar")}
    assert keys == {f"{number:03d}" for number in range(11)} | {"doc0", "show0"}
    assert (summary.samples, summary.quarantined) == (13, 14)
    report = json.loads((tmp_path / "out" / "raw.tar.report.json").read_text())
    assert report["samples"] == {"seen": 27, "written": 13}
    totals = json.loads((tmp_path / "out" / "manifest.json").read_text())["totals"]
    assert (totals["samples"], totals["quarantined"], totals["images"], totals["damaged"]) == (13, 14, 14, 0)


def test_damage_costs_the_samples_in_it_and_is_counted_apart(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "raw.tar", [file for number in range(9) for file in pair(number)])
    content = bytearray(shard.read_bytes())
    offset = content.index(b"004.png")
    content[offset : offset + 200] = b"\xee" * 200
    cut = content.index(b"008.txt") + 512 + 3
    shard.write_bytes(bytes(content[:cut]))
    run([shard], tmp_path / "out", max_bad=0.5)
    lines = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert [(line["shard"], line["name"]) for line in lines] == [("raw.tar", name) for name in ("004", "008", "")]
    for line, named in zip(lines, [("picture", offset), ("008.txt", cut), (offset,)], strict=True):
        assert names(line["reason"], *named)
    totals = json.loads((tmp_path / "out" / "manifest.json").read_text())["totals"]
    assert (totals["samples"], totals["quarantined"], totals["damaged"]) == (7, 2, 1)


def test_the_same_command_gives_the_same_bytes_in_any_folder(
    shards: list[Path], vae: str, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    run(shards, tmp_path / "again", autoencoder=vae, mirror=True)
    assert contents(tmp_path / "again") == unbroken


def test_a_second_start_does_nothing(shards: list[Path], tmp_path: Path) -> None:
    run(shards, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    summary = run(shards, tmp_path / "out")
    assert (summary.images, summary.shards) == (0, 0)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("left", [0, 1, 2])
def test_what_a_killed_run_leaves_is_completed_to_the_same_bytes(
    left: int, shards: list[Path], vae: str, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    complete = [name for name in unbroken if any(name.startswith(shard.name) for shard in shards[:left])]
    for name in [*complete, "settings.json"]:
        (folder / name).write_bytes(unbroken[name])
    torn = shards[left].name
    for name in (torn, f"{torn}.index", f"{torn}.report.json", "manifest.json"):
        (folder / f"{name}.partial").write_bytes(b"half" * 5000)
    (folder / f"{torn}.index").write_bytes(b"of a tar that was never committed")
    assert run(shards, folder, autoencoder=vae, mirror=True).shards == 3 - left
    assert contents(folder) == unbroken


def test_several_at_once_share_the_shards_and_write_the_same_bytes(
    shards: list[Path], vae: str, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    with ThreadPoolExecutor(3) as pool:
        started = [pool.submit(run, shards, tmp_path / "out", autoencoder=vae, mirror=True) for _ in range(3)]
        assert sum(one.result().shards for one in started) == len(shards)
    assert contents(tmp_path / "out") == unbroken


def test_a_shard_that_another_holds_is_taken_over_when_he_lets_go(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "POLL_SECONDS", 0.01)
    (tmp_path / "out").mkdir()
    with (tmp_path / "out" / f"{shards[0].name}.partial").open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        timer = threading.Timer(0.5, held.close)
        timer.start()
        summary = run(shards, tmp_path / "out")
        timer.join()
    assert summary.shards == len(shards)


def test_another_raw_shard_of_the_same_name_is_refused(shards: list[Path], tmp_path: Path) -> None:
    run(shards, tmp_path / "out")
    other = write_tar(tmp_path / shards[0].name, [*pair(0)])
    with pytest.raises(ValueError, match=naming(other, tmp_path / "out" / other.name)):
        run([other], tmp_path / "out")


def test_a_raw_shard_that_was_written_again_is_refused_until_its_output_is_deleted(tmp_path: Path) -> None:
    raw = write_tar(tmp_path / "raw.tar", [("0.png", png(0)), ("0.txt", b"red")])
    run([raw], tmp_path / "out")
    write_tar(raw, [("0.png", png(0)), ("0.txt", b"a blue one")])
    os.utime(tmp_path / "out" / "raw.tar.report.json", (0, 0))
    with pytest.raises(ValueError, match=naming(raw, tmp_path / "out" / "raw.tar")):
        run([raw], tmp_path / "out")
    (tmp_path / "out" / "raw.tar").unlink()
    run([raw], tmp_path / "out")
    assert read_tar(tmp_path / "out" / "raw.tar")["0.txt"] == b"a blue one"
    run([raw], tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_raw_shard_that_was_only_touched_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = write_tar(tmp_path / "raw.tar", [("0.png", png(0)), ("0.txt", b"red")])
    run([raw], tmp_path / "out")
    before = contents(tmp_path / "out")
    os.utime(tmp_path / "out" / "raw.tar.report.json", (0, 0))
    hashed = []
    hash_file = run_module.file_sha256
    monkeypatch.setattr(run_module, "file_sha256", lambda file: hashed.append(file) or hash_file(file))
    for _ in range(2):
        run([raw], tmp_path / "out")
    assert len(hashed) == 1
    assert contents(tmp_path / "out") == before


def test_what_is_not_read_is_counted_and_changes_no_byte(tmp_path: Path) -> None:
    files = [("0.png", png(0)), ("0.txt", b"red")]
    summary = run([write_tar(tmp_path / "raw.tar", files)], tmp_path / "without")
    assert summary.unread == {}
    more = [("0.gif", b"x"), ("0.caption", b"x"), ("1.gif", b"x")]
    summary = run([write_tar(tmp_path / "raw.tar", [*files, *more])], tmp_path / "with")
    assert summary.unread == summary.describe()["unread"] == {"gif": 2, "caption": 1}
    assert read_tar(tmp_path / "with" / "raw.tar") == read_tar(tmp_path / "without" / "raw.tar")


def test_more_shards_can_be_added_to_an_output(shards: list[Path], tmp_path: Path) -> None:
    run(shards, tmp_path / "whole")
    run(shards[:1], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["totals"]["shards"] == 1
    run(shards, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_an_error_of_the_writer_ends_the_run(
    shards: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("oneflow_dist.precompute.shard_work.write_whole", fail)
    with pytest.raises(OSError, match="no space left"):
        run(shards, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["settings.json"]


def test_training_reads_what_was_written(
    shards: list[Path], vae: str, unbroken: dict[str, bytes], tmp_path: Path, config: Config
) -> None:
    run(shards, tmp_path / "out", autoencoder=vae, mirror=True)
    kind = config.modality["image"]
    image = {"image": dataclasses.replace(kind, channels=4, patch=(2, 2), codec=vae)}
    grey = {"image": dataclasses.replace(kind, channels=3, patch=(1, 1))}
    tokenizer = load_tokenizer("bytes", image)
    latents = open_shards("out", f"{tmp_path}/out/raw-*.tar")
    raw = open_shards("raw", f"{shards[0].parent}/raw-*.tar", index_folder=str(tmp_path))
    assert len(latents) == len(raw) == 21
    for place in range(len(raw)):
        record = latents.read(place)
        made = decode_record(record, read_fields(record), "txt", Reading(), tokenizer, image)
        one = to_sample(made, "both", "latents", [], tokenizer, image, np.random.default_rng(0))
        source = raw.read(place)
        plain = decode_record(source, read_fields(source), "txt", Reading(), tokenizer, grey)
        other = to_sample(plain, "both", "latents", [], tokenizer, grey, np.random.default_rng(0))
        assert np.array_equal(one.tokens, other.tokens)
        assert np.isfinite(one.pieces[0].patches).all()
        assert len(one.pieces[0]) == len(other.pieces[0])
    assert contents(tmp_path / "out") == unbroken  # the indexes were not made again


def test_conversations_become_latents_and_train_with_pictures_in_questions_and_answers(
    vae: str, tmp_path: Path
) -> None:
    image, so = {"type": "image"}, {"type": "text", "text": "so"}
    turns = [{"role": "user", "content": [image, so]}, {"role": "assistant", "content": [so, image]}]
    llava = [{"from": "human", "value": "<image>\n<|image|>"}, {"from": "gpt", "value": "so"}]
    files = [("0.0.png", png(0)), ("0.1.png", png(1)), ("0.json", json.dumps({"messages": turns}).encode())]
    files += [("1.png", png(2)), ("1.json", json.dumps({"conversations": llava, "image": "a/b.png"}).encode())]
    run([write_tar(tmp_path / "raw.tar", files)], tmp_path / "out", autoencoder=vae)
    assert [verdict.problem for verdict in check_output(tmp_path / "out", None)] == [None]
    kinds = {"image": modality(channels=4, patch=(2, 2), codec=vae)}
    tokenizer, latents = load_tokenizer("bytes", kinds), open_shards("out", f"{tmp_path}/out/raw.tar")
    seen, (user, assistant) = tokenizer.piece_of["image"], (tokenizer.role_of[role] for role in ("user", "assistant"))
    expected = [
        ([user, seen, *b"so", assistant], [*b"so", seen]),
        ([user, seen, *b"<|image|>", assistant], [*b"so"]),
    ]
    for number, (given, target) in enumerate(expected):
        record = latents.read(number)
        document = decode_record(record, read_fields(record), "txt", Reading(), tokenizer, kinds)
        sample = to_sample(document, "instruct", "latents", [], tokenizer, kinds, np.random.default_rng(0))
        assert sample.tokens.tolist() == [tokenizer.bos, *given, *target]
        assert sample.is_target.sum() == len(target)
        assert sample.is_interleaved == (seen in target)
        assert np.isfinite(sample.pieces[0].patches).all()


def test_pictures_become_latents_beside_sounds_and_moving_pictures_and_all_of_them_train(
    vae: str, tmp_path: Path
) -> None:
    files = [file for number in range(3) for file in show(number)] + pair(0)
    shard = write_tar(tmp_path / "raw.tar", files)
    run([shard], tmp_path / "out", autoencoder=vae)
    made = read_tar(tmp_path / "out" / "raw.tar")
    for name, data in files:
        assert name.endswith(".png") or made[name] == data or name == "000.json"
    assert [verdict.problem for verdict in check_output(tmp_path / "out", None)] == [None]
    image = modality(channels=4, patch=(2, 2), codec=vae)
    kinds = {"image": image, "sound": SOUND, "video": dataclasses.replace(VIDEO, shape=(2, 8, 8))}
    tokenizer = load_tokenizer("bytes", kinds)
    latents = open_shards("out", f"{tmp_path}/out/raw.tar")
    for number in range(3):
        record = latents.read(number)
        document = decode_record(record, read_fields(record), "txt", Reading(), tokenizer, kinds)
        sample = to_sample(document, "both", "latents", [], tokenizer, kinds, np.random.default_rng(0))
        order = [tokenizer.piece_of[kind] for kind in ("sound", "image", "video")]
        assert sample.tokens.tolist() == [tokenizer.bos, *order, *f"show {number}".encode()]
        grids = [(1, 4, 4), (8 + number, 1, 1), (2, 4, 4)]
        assert [tuple(of_kind.grid[0]) for of_kind in sample.pieces] == grids
        assert all(np.isfinite(of_kind.patches).all() for of_kind in sample.pieces)


def test_results_come_in_order_and_not_too_far_ahead() -> None:
    started: list[int] = []

    def task(number: int) -> Callable[[], int]:
        return lambda: started.append(number) or number  # type: ignore[func-returns-value]

    with ThreadPoolExecutor(4) as pool:
        results = in_order(pool, map(task, range(50)), depth=5)
        assert next(results) == 0
        assert len(started) <= 5
        assert list(results) == list(range(1, 50))
        assert list(ahead(pool, iter("abc"))) == list("abc")
