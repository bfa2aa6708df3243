from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from oneflow_dist.containers import ShardRecord
from oneflow_dist.data.decoding import read_fields, read_segments
from oneflow_dist.data.index import file_sha256
from oneflow_dist.data.shards import open_shards
from oneflow_dist.prepare import shards
from oneflow_dist.prepare.samples import Kind, Picture, Sample
from oneflow_dist.prepare.shards import caption_fields, plan_shards, sample_files, write_shards
from tests.prepare.prepared import a_sample


def read(_: Picture) -> bytes:
    return b"png"


def plan(*samples: Sample, held_out: tuple[int, ...] = ()) -> list[shards.ShardPlan]:
    return plan_shards([((sample, read), number in held_out) for number, sample in enumerate(samples)])


def files(sample: Sample, num_captions: int = 1) -> dict[str, Any]:
    found = dict(sample_files(sample, num_captions, read))
    return {name: json.loads(content) if name == "json" else content.decode() for name, content in found.items()}


def segments(sample: Sample, caption: str = "txt", num_captions: int = 1) -> list[tuple[str | None, str | None, str]]:
    """What training reads of it: text, or the name of a picture, and whose turn it is."""
    record = ShardRecord(key="x", files=dict(sample_files(sample, num_captions, read)))
    return [(one.text, one.piece, one.role) for one in read_segments(record, read_fields(record), caption)]


def test_one_kind_has_plain_names_and_several_have_theirs() -> None:
    pairs = [a_sample(number) for number in range(3)]
    assert [one.name for one in plan(*pairs, held_out=(1,))] == ["train-000000.tar", "heldout-000000.tar"]
    texts = a_sample(3, "texts", [], turns=(("", ("a",)),))
    assert [one.name for one in plan(*pairs, texts)] == ["pairs-train-000000.tar", "texts-train-000000.tar"]


def test_a_shard_is_full_at_so_many_samples_or_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_SAMPLES", 4)
    monkeypatch.setattr(shards, "MAX_BYTES", 250)
    assert [len(one.samples) for one in plan(*(a_sample(number) for number in range(5)))] == [2, 2, 1]
    texts = [a_sample(number, "texts", [], turns=(("", ("a",)),)) for number in range(6)]
    assert [len(one.samples) for one in plan(*texts)] == [4, 2]


def test_a_pair_has_what_its_owner_said_of_it() -> None:
    sample = a_sample(1, fields={"licence": "cc0", "question": "who?", "width": 7})
    own = {"name": "001.png", "licence": "cc0", "source_question": "who?", "width": 7, "height": 48}
    assert files(sample) == {"txt": "caption 1", "json": own, "png": "png"}
    assert segments(sample) == [("caption 1", None, "user"), (None, "", "user")]


def test_every_picture_has_as_many_captions_as_any() -> None:
    assert caption_fields(3) == ["txt", "caption_2", "caption_3"]
    sample = a_sample(1, captions=("one", "two"))
    assert [segments(sample, name, 3)[0][0] for name in caption_fields(3)] == ["one", "two", "one"]


@pytest.mark.parametrize(
    ("kind", "turns", "read_as"),
    [
        ("texts", (("", ("a text",)),), [("a text", None, "user")]),
        ("documents", (("", ("a", 0, "b")),), [("a", None, "user"), (None, "0", "user"), ("b", None, "user")]),
        (
            "conversations",
            (("user", (0, "what?")), ("assistant", ("this",))),
            [(None, "0", "user"), ("what?", None, "user"), ("this", None, "assistant")],
        ),
    ],
)
@pytest.mark.parametrize("fields", [{}, {"segments": "mine", "messages": 1}])
def test_training_reads_what_was_prepared(
    kind: Kind, turns: Any, read_as: list[tuple[str | None, str | None, str]], fields: dict[str, Any]
) -> None:
    seeds = [1] if kind != "texts" else []
    sample = a_sample(1, kind, seeds, turns=turns, fields=fields)
    if not (kind == "texts" and fields):
        assert segments(sample) == read_as
    else:
        assert segments(sample)[-1][0] == "a text"


def test_a_shard_has_its_index_and_is_written_once(tmp_path: Path) -> None:
    plans = plan(*(a_sample(number) for number in range(6)))
    write_shards(tmp_path, plans, 1, {"made": "so"})
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    found = open_shards("mine", f"{tmp_path}/train-000000.tar")
    assert len(found) == 6
    assert found.read(2).header == {"made": "so"}
    with (tmp_path / "train-000000.tar").open("rb") as file:
        assert found.indexes[0].tar_sha256 == file_sha256(file)
    write_shards(tmp_path, plans, 1, {"made": "so"})
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
