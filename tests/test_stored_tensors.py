from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from oneflow_dist.stored_tensors import check_tensors, named_leaves, read_tensors, shapes
from tests.messages import names, naming

State = dict[str, Any]


def state(fill: float, **sizes: tuple[int, ...]) -> State:
    return {"model": {name: torch.full(size, fill) for name, size in sizes.items()}}


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """Tensors a [4, 3], b [5] and deep.c [2, 2] of a model, filled with 1, and another table."""
    tensors = {**state(1.0, a=(4, 3), b=(5,)), "other": {"x": torch.ones(7), "setting": 3}}
    tensors["model"]["deep"] = {"c": torch.ones(2, 2, dtype=torch.bfloat16)}
    dcp.save(tensors, checkpoint_id=tmp_path / "stored", no_dist=True)
    return tmp_path / "stored"


def test_tensors_are_filled_in_place_and_keep_their_dtype(stored: Path) -> None:
    asked = state(0.0, a=(4, 3), b=(5,)) | {"other": {"x": torch.zeros(7, dtype=torch.float64)}}
    asked["model"]["deep"] = {"c": torch.zeros(2, 2)}
    tensors = [value for _, value in named_leaves(asked)]
    read_tensors(asked, stored, no_dist=True)
    assert [tensor.dtype for tensor in tensors] == [torch.float32, torch.float32, torch.float32, torch.float64]
    assert all(torch.equal(tensor, torch.ones_like(tensor)) for tensor in tensors)


def test_tables_that_are_not_asked_for_may_hold_anything(stored: Path) -> None:
    asked = {"other": {"x": torch.zeros(7)}}
    read_tensors(asked, stored, no_dist=True)
    assert torch.equal(asked["other"]["x"], torch.ones(7))


def test_missing_unexpected_and_differing_tensors_are_counted_and_named_in_one_line(stored: Path) -> None:
    asked = state(0.0, a=(4, 3), b=(6,), d=(1,), e=(1,), f=(1,), g=(1,))
    before = {name: tensor.clone() for name, tensor in asked["model"].items()}
    missing, unexpected = (4, "model.d", "model.e", "model.f"), (1, "model.deep.c", "[2, 2]")
    other_shape = (1, "model.b", "[5]", "[6]")
    with pytest.raises(ValueError, match=naming(stored, *missing, *unexpected, *other_shape, "run.folder")) as error:
        read_tensors(asked, stored, no_dist=True)
    assert "model.g" not in str(error.value)  # a few of them stand for all
    assert all(torch.equal(asked["model"][name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("there", "here", "named"),
    [
        ({"a": [2, 3]}, {"a": [3, 2]}, (1, "a", "[2, 3]", "[3, 2]")),
        ({"a": [6]}, {"a": [2, 3]}, (1, "a", "[6]", "[2, 3]")),
        ({"a": [1], "b": [2]}, {"a": [1]}, (1, "b", "[2]")),
        ({"a": [1]}, {"a": [1], "b": []}, (1, "b")),
    ],
)
def test_a_kind_of_difference_that_does_not_occur_is_not_named(
    there: dict[str, list[int]], here: dict[str, list[int]], named: tuple[object, ...]
) -> None:
    sizes = [{name: torch.Size(size) for name, size in table.items()} for table in (there, here)]
    with pytest.raises(ValueError, match=naming("run", *named)) as error:
        check_tensors("run", *sizes)
    assert not names(str(error.value), 0)


def test_equal_tensors_pass_in_any_order() -> None:
    check_tensors("run", {"a": torch.Size([1]), "b": torch.Size([2])}, {"b": torch.Size([2]), "a": torch.Size([1])})


def test_shapes_are_those_of_tensors_by_dotted_name() -> None:
    assert shapes({"a": {"b.c": torch.zeros(2, 3)}, "step": torch.tensor(1.0), "lr": 0.1}) == {
        "a.b.c": torch.Size([2, 3]),
        "step": torch.Size([]),
    }


@pytest.mark.parametrize("damage", ["missing", "cut off"])
def test_a_part_that_is_missing_or_cut_off_is_named_before_anything_is_read(damage: str, stored: Path) -> None:
    part = stored / "__0_0.distcp"
    if damage == "missing":
        part.unlink()
    else:
        part.write_bytes(part.read_bytes()[:-1])
    asked = {"other": {"x": torch.zeros(7)}}
    with pytest.raises(ValueError, match=naming(stored, "__0_0.distcp")):
        read_tensors(asked, stored, no_dist=True)
    assert torch.equal(asked["other"]["x"], torch.zeros(7))


def test_a_part_that_is_as_long_as_it_was_but_broken_is_named(stored: Path) -> None:
    part = stored / "__0_0.distcp"
    part.write_bytes(bytes(part.stat().st_size))
    with pytest.raises(CheckpointException) as error:
        read_tensors({"other": {"x": torch.zeros(7)}}, stored, no_dist=True)
    step, failures = error.value.args
    assert step == "read"
    assert isinstance(failures[0][0], ValueError)
    assert names(str(failures[0][0]), stored)


def test_an_index_that_cannot_be_read_is_named(stored: Path) -> None:
    (stored / ".metadata").write_bytes(b"nothing that can be read")
    with pytest.raises(ValueError, match=naming(stored, ".metadata")):
        read_tensors({"other": {"x": torch.zeros(7)}}, stored, no_dist=True)


class Call:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_an_index_of_any_python_is_read(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = dcp.FileSystemReader(stored).read_metadata()
    monkeypatch.setattr(
        "torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING.__reduce_ex__",
        lambda member, _: (getattr, (type(member), member.name)),  # as Python 3.11.2 has it
    )
    content = pickle.dumps(index, protocol=3)  # which names modules in plain lines
    assert b"getattr" in content
    assert b"cpathlib\n" in content
    (stored / ".metadata").write_bytes(content.replace(b"cpathlib\n", b"cpathlib._local\n"))  # as 3.13 has it
    test_tables_that_are_not_asked_for_may_hold_anything(stored)


def test_an_index_reaches_no_attribute_of_anything_else(stored: Path) -> None:
    (stored / ".metadata").write_bytes(b"cbuiltins\ngetattr\n(ctorch\nSize\nS'__init__'\ntR.")
    with pytest.raises(ValueError, match=naming(stored, ".metadata", "__init__")):
        read_tensors(state(0.0, a=(4, 3)), stored, no_dist=True)


@pytest.mark.parametrize("is_hidden", [False, True], ids=["instead of the index", "within the index"])
def test_reading_runs_nothing_that_comes_with_a_checkpoint(is_hidden: bool, stored: Path, tmp_path: Path) -> None:
    index = dcp.FileSystemReader(stored).read_metadata()
    index.planner_data = Call(tmp_path / "ran")
    (stored / ".metadata").write_bytes(pickle.dumps(index if is_hidden else index.planner_data))
    with pytest.raises(ValueError, match=naming(stored, ".metadata", "posix.mkdir")):
        read_tensors(state(0.0, a=(4, 3)), stored, no_dist=True)
    assert not (tmp_path / "ran").exists()
