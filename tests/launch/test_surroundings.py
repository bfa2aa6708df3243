from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import oneflow_dist.config
from launch import surroundings
from launch.faults import ADVICE
from launch.surroundings import check_room, code_hash, find_mark, shared_facts, write_mark
from oneflow_dist.config import Config
from tests.messages import naming

MakeConfig = Callable[..., Config]
Usage = type(shutil.disk_usage("/"))


def test_facts_are_the_same_for_the_same_code_and_config(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts, other = shared_facts(make_config()), shared_facts(make_config("run.seed=1"))
    assert shared_facts(make_config()) == facts
    assert {key for key, value in facts.items() if other[key] != value} == {"config"}
    assert set(facts) <= set(ADVICE)  # each is compared
    copy = tmp_path / "oneflow_dist"
    shutil.copytree(Path(str(oneflow_dist.config.__file__)).parent, copy)
    monkeypatch.setattr(oneflow_dist.config, "__file__", str(copy / "config.py"))
    assert code_hash() == facts["code"]  # wherever it lies
    with (copy / "flow/losses.py").open("a") as file:
        file.write("\n")
    assert code_hash() != facts["code"]


def leave_free(monkeypatch: pytest.MonkeyPatch, num_bytes: float) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**50, 2**50 - int(num_bytes), int(num_bytes)))


def test_room_is_for_the_checkpoints_that_are_kept_and_one_more_less_those_that_are_written(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = ("model.width=256", "model.mlp_width=4096", "checkpoint.keep=3")
    config = make_config(f"run.folder={tmp_path / 'run'}", *sizes)
    leave_free(monkeypatch, 2**40)
    gib = float(check_room(config).split()[2]) / 4 * 2**30
    assert gib > 2**26
    leave_free(monkeypatch, 3.9 * gib)
    with pytest.raises(ValueError, match=naming(tmp_path / "run", "checkpoint.keep", 3)):
        check_room(config)
    for step in (1, 2):
        folder = tmp_path / f"run/checkpoints/step-0000000{step}"
        folder.mkdir(parents=True)
        (folder / "COMPLETE").write_text("yes")
    check_room(config)
    leave_free(monkeypatch, 1.9 * gib)
    with pytest.raises(ValueError, match=naming(tmp_path / "run", "run.folder")):
        check_room(config)


def test_a_run_folder_is_made_and_seen_and_nothing_but_the_mark_is_left_in_it(tmp_path: Path) -> None:
    folder = tmp_path / "runs/new"
    path = write_mark(str(folder), ".health-x")
    find_mark(str(folder), ".health-x")
    assert list(folder.iterdir()) == [path]


def test_a_folder_that_is_another_on_this_node_is_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "SEEN_SECONDS", 0.0)
    with pytest.raises(ValueError, match=naming(tmp_path)):
        find_mark(str(tmp_path), ".health-x")


def test_a_folder_that_cannot_be_written_to_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=naming(tmp_path / "file")):
        write_mark(str(tmp_path / "file"), ".health-x")
