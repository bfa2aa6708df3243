from __future__ import annotations

import io
import pickle
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from oneflow_dist.prepare.items import Blob, Item, Row, open_arrow
from tests.messages import naming


def test_a_blob_is_a_file_or_a_part_of_one_or_the_bytes_themselves(tmp_path: Path) -> None:
    path = tmp_path / "owl.png"
    path.write_bytes(b"0123456789")
    assert Blob(name="owl.png", path=path).read() == b"0123456789"
    assert Blob(name="owl.png", path=path, offset=2, length=3).read() == b"234"
    assert Blob(name="page.html", path=path, content=b"abc").read() == b"abc"


def test_a_file_that_ends_early_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.tar"
    path.write_bytes(b"0123")
    with pytest.raises(ValueError, match=naming("cut.tar/owl.png", path, 2, 3)):
        Blob(name="cut.tar/owl.png", path=path, offset=2, length=3).read()


@pytest.mark.parametrize("is_struct", [True, False])
def test_a_row_of_parquet_is_read_from_its_group(tmp_path: Path, is_struct: bool) -> None:
    path = tmp_path / "data.parquet"
    contents = [b"zero", b"one", b"two", None]
    column = [{"bytes": each, "path": "birds/owl.png"} if is_struct else each for each in contents]
    pyarrow.parquet.write_table(pyarrow.table({"image": column}), path, row_group_size=2)
    assert Blob(name="row 3", path=path, row=Row(1, 0, "image")).read() == b"two"
    with pytest.raises(ValueError, match=naming("row 4", "'image'", path)) as error:
        Blob(name="row 4", path=path, row=Row(1, 1, "image")).read()
    assert ("birds/owl.png" in str(error.value)) == is_struct


@pytest.mark.parametrize("opener", [pyarrow.ipc.new_stream, pyarrow.ipc.new_file])
def test_arrow_is_read_as_a_stream_and_as_a_file(tmp_path: Path, opener: object) -> None:
    path = tmp_path / "data.arrow"
    table = pyarrow.table({"image": [b"zero", b"one", b"two"]})
    with path.open("wb") as file, opener(file, table.schema) as writer:  # type: ignore[operator]
        writer.write_table(table, max_chunksize=1)
    assert open_arrow(path).num_rows == 3
    assert Blob(name="row 3", path=path, row=Row(0, 2, "image")).read() == b"two"


def test_items_travel_to_other_processes(tmp_path: Path) -> None:
    item = Item(name="a", parts=("text", Blob(name="b", path=tmp_path, row=Row(0, 1, "image"))))
    assert pickle.load(io.BytesIO(pickle.dumps(item))) == item
