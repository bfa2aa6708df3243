from __future__ import annotations

from pathlib import Path

import pytest

from oneflow_dist.data.mixture import Source
from oneflow_dist.data.report import report_modalities, report_source
from oneflow_dist.data.shards import open_shards
from tests.messages import Message, names
from tests.pieces import SOUND, VECTOR, VIDEO, VISION, modality
from tests.tars import PAIRS, write_tar

LATENT = {"1.npy": b"", "1.mirrored.npy": b"", "1.tokens.npy": b""}


def report(folder: Path, members: dict[str, bytes], *tasks: str) -> str:
    """Of one shard; the tasks are equally frequent."""
    path = str(write_tar(folder / "x.tar", members))
    source = Source(name="pets", shards=path, weight=1.0, tasks=dict.fromkeys(tasks, 1.0), captions={"txt": 1.0})
    return report_source(source, open_shards("pets", path))


def refusal(folder: Path, members: dict[str, bytes], *tasks: str) -> str:
    with pytest.raises(ValueError) as error:
        report(folder, members, *tasks)
    return Message(error.value)


def test_a_source_is_told_with_all_that_it_holds(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tar(tmp_path / f"{name}.tar", {**PAIRS, "3.0.png": b"", "3.1.jpg": b"", "3.json": b""})
    pattern = f"{tmp_path}/*.tar"
    source = Source(name="pets", shards=pattern, weight=1.0, tasks={"both": 1.0}, captions={"txt": 1.0})
    line = report_source(source, open_shards("pets", pattern))
    assert line == "source pets: 6 samples in 2 shards, 2 jpg, 2 json, 6 png, 4 txt"


def test_what_is_not_read_is_told(tmp_path: Path) -> None:
    line = report(tmp_path, {**PAIRS, "1.gif": b"", "2.gif": b"", "2.caption": b""}, "both")
    assert line == "source pets: 2 samples in 1 shard, 2 png, 2 txt; not read: 2 .gif, 1 .caption"


def test_a_modality_of_which_nothing_is_there_is_told(tmp_path: Path) -> None:
    """Files of its dimensions, or arrays called after it, may be of it; what is only given is made of others' files."""
    path = str(write_tar(tmp_path / "x.tar", {**PAIRS, "3.0.wav": b"", "3.1.vector.npy": b"", "3.json": b""}))
    kinds = {"image": modality(), "sound": SOUND, "vector": VECTOR, "vision": VISION, "video": VIDEO}
    (line,) = report_modalities(kinds, [open_shards("pets", path)])
    assert names(line, "modality.video", 3, "video")
    lines = report_modalities({"image": modality(), "vector": VECTOR}, [open_shards("pets", path)])
    assert lines == []
    told = report_modalities({"other": VECTOR, "noise": SOUND}, [open_shards("pets", path)])
    assert [line.partition(":")[0] for line in told] == ["modality.other"]


def test_arrays_beside_a_latent_are_told_apart(tmp_path: Path) -> None:
    line = report(tmp_path, {**LATENT, "1.txt": b""}, "both")
    assert line == "source pets: 1 sample in 1 shard, 1 mirrored.npy, 1 npy, 1 tokens.npy, 1 txt"


@pytest.mark.parametrize("task", ["text_to_image", "image_to_text", "both", "interleaved", "image_only"])
def test_pictures_that_are_all_of_unknown_kinds_are_refused(tmp_path: Path, task: str) -> None:
    assert refusal(tmp_path, {"1.txt": b"", "1.gif": b""}, "text_only", task) == (
        f"source pets: 1 sample in 1 shard, 1 txt, but no pictures, which task {task!r} wants; not read: 1 .gif; "
        "pictures are read as .png, .jpg, .jpeg and .webp, sounds as .wav, moving pictures as .apng, latents as .npy, "
        "text as .txt and .json; write what is missing so, or give the source another task"
    )


@pytest.mark.parametrize("task", ["text_to_image", "image_to_text", "both", "interleaved", "text_only", "instruct"])
def test_text_that_is_all_of_unknown_kinds_is_refused(tmp_path: Path, task: str) -> None:
    for members in ({"1.png": b"", "1.caption": b""}, {**LATENT, "1.cap": b""}):
        assert f", but no text, which task {task!r} wants; not read: 1 .ca" in refusal(
            tmp_path, members, "image_only", task
        )


def test_a_text_whose_key_has_dots_is_explained(tmp_path: Path) -> None:
    message = refusal(tmp_path, {"photo1.v1.5.txt": b"", "photo1.v1.5.png": b""}, "both")
    assert "1 png, but no text, which task 'both' wants; not read: 1 .*.txt; " in message
    assert "all after the first dot of a file's name is its extension, so a key has no dots" in message


@pytest.mark.parametrize(
    ("members", "tasks"),
    [
        ({"1.png": b"", "1.cls": b""}, ["image_only"]),
        ({"1.txt": b"", "1.url": b""}, ["text_only"]),
        ({"1.json": b"", "1.url": b""}, ["instruct", "text_only"]),
        ({**LATENT, "1.json": b"", "1.url": b""}, ["both"]),
        ({"1.txt": b"", "2.txt": b""}, ["both"]),
        ({"1.png": b""}, ["both"]),
    ],
)
def test_what_no_task_wants_or_nobody_wrote_may_be_missing(
    tmp_path: Path, members: dict[str, bytes], tasks: list[str]
) -> None:
    assert report(tmp_path, members, *tasks).startswith("source pets: ")
