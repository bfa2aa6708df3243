from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from tests.precompute.making import contents, read_tar
from tools.shards import SHARD_SAMPLES, encode_png, write_shards


def test_a_picture_keeps_its_pixels() -> None:
    image = np.arange(64, dtype=np.uint8).reshape(8, 8)
    with Image.open(io.BytesIO(encode_png(image))) as picture:
        assert picture.mode == "L"
        assert np.array_equal(np.asarray(picture), image)


def samples(number: int) -> list[dict[str, bytes | str]]:
    return [{"txt": f"text {place}", "json": "{}"} for place in range(number)]


def test_a_set_is_cut_into_shards_and_its_keys_are_counted_over_all(tmp_path: Path) -> None:
    write_shards(tmp_path, "some", samples(SHARD_SAMPLES + 2))
    first, second = (read_tar(tmp_path / f"some-{shard:06d}.tar") for shard in (0, 1))
    assert len(first) == 2 * SHARD_SAMPLES
    assert {name for name in second if name.endswith("txt")} == {"001024.txt", "001025.txt"}
    assert second["001025.txt"] == b"text 1025"


def test_the_same_samples_are_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        write_shards(tmp_path / name, "some", samples(3))
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


def test_fewer_samples_leave_no_shard_of_an_earlier_call_and_all_of_other_sets(tmp_path: Path) -> None:
    write_shards(tmp_path, "some", samples(SHARD_SAMPLES + 1))
    write_shards(tmp_path, "others", samples(1))
    write_shards(tmp_path, "some", samples(1))
    assert sorted(contents(tmp_path)) == ["others-000000.tar", "some-000000.tar"]
