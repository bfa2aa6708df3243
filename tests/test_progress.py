from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from oneflow_dist.config import CheckpointConfig, Config, load_config
from oneflow_dist.guard.guard import GuardState
from oneflow_dist.progress import (
    Progress,
    checkpoint_folder,
    clear_place,
    complete,
    complete_steps,
    delete_old,
    find_latest,
    folder_beside,
    read_progress,
)

PROGRESS = Progress(
    step=7,
    lanes={0: {"draws": [3], "waiting": [[0, 2]]}, 11: {"draws": [5], "waiting": []}},
    guard=GuardState(norm_mean=0.1 + 0.2, accepted=6, skipped=1),
)


def write_marks(run: Path, *steps: int) -> None:
    for step in steps:
        folder = checkpoint_folder(str(run), step)
        folder.mkdir(parents=True)
        (folder / "COMPLETE").touch()


def test_a_checkpoint_that_is_completed_has_its_name_and_says_where_the_run_stood(
    config: Config, tmp_path: Path
) -> None:
    final = checkpoint_folder(str(tmp_path), 7)
    clear_place(final)
    (folder_beside(final) / "part").write_text("weights")
    complete(final, config, PROGRESS)
    assert [path.name for path in final.parent.iterdir()] == ["step-00000007"]
    assert sorted(path.name for path in final.iterdir()) == ["COMPLETE", "config.toml", "part", "progress.json"]
    assert read_progress(final) == PROGRESS
    assert load_config(final / "config.toml") == config


def test_progress_is_plain_json(config: Config, tmp_path: Path) -> None:
    final = checkpoint_folder(str(tmp_path), 7)
    clear_place(final)
    complete(final, config, PROGRESS)
    assert json.loads((final / "progress.json").read_text()) == {
        "format": 3,
        "step": 7,
        "lanes": {str(index): lane for index, lane in PROGRESS.lanes.items()},
        "guard": {"norm_mean": 0.1 + 0.2, "accepted": 6, "skipped": 1},
    }


def test_a_place_is_cleared_of_what_a_save_that_died_has_left(tmp_path: Path) -> None:
    final = checkpoint_folder(str(tmp_path), 7)
    for folder in (final, folder_beside(final)):
        folder.mkdir(parents=True)
        (folder / "__0_0.distcp").write_bytes(b"half")
    clear_place(final)
    assert [path.name for path in final.parent.rglob("*")] == ["step-00000007.incomplete"]


def test_incomplete_checkpoints_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_latest(str(tmp_path)) is None
    names = ("step-00000010", "step-00000020.incomplete", "step-00000030")
    for name in names:
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    (tmp_path / "checkpoints/step-00000020.incomplete/COMPLETE").touch()  # killed before it got its name
    assert find_latest(str(tmp_path)) is None
    ends = [f"{tmp_path}/checkpoints/{name} is incomplete (no COMPLETE file) and ignored; " for name in reversed(names)]
    assert capsys.readouterr().out.splitlines() == [f"{start}there is no complete one" for start in ends]
    (tmp_path / "checkpoints/step-00000010/COMPLETE").touch()
    assert find_latest(str(tmp_path)) == tmp_path / "checkpoints/step-00000010"
    assert capsys.readouterr().out.splitlines() == [
        f"{start}the last complete one is step-00000010" for start in ends[:2]
    ]


def test_a_folder_that_was_given_another_name_is_no_checkpoint(tmp_path: Path) -> None:
    write_marks(tmp_path, 10, 20)
    last = checkpoint_folder(str(tmp_path), 20)
    last.rename(last.with_name(last.name + ".damaged"))
    assert find_latest(str(tmp_path)) == checkpoint_folder(str(tmp_path), 10)


def test_the_last_checkpoint_is_that_of_the_highest_step(tmp_path: Path) -> None:
    write_marks(tmp_path, 99_999_999, 100_000_000, 9)
    assert find_latest(str(tmp_path)) == checkpoint_folder(str(tmp_path), 100_000_000)


@pytest.mark.parametrize(
    ("keep", "keep_every_steps", "kept"),
    [
        (1, 0, [0, 12]),
        (2, 0, [0, 11, 12]),
        (9, 0, [0, 3, 4, 6, 9, 10, 11, 12]),
        (1, 5, [0, 10, 12]),  # 10 is a multiple, and not one of the newest that are counted
        (2, 3, [0, 3, 6, 9, 10, 11, 12]),
        (1, 4, [0, 4, 11, 12]),
    ],
)
def test_the_newest_checkpoints_and_the_multiples_and_the_first_weights_are_kept(
    keep: int, keep_every_steps: int, kept: list[int], tmp_path: Path
) -> None:
    write_marks(tmp_path, 0, 3, 4, 6, 9, 10, 11, 12)
    delete_old(str(tmp_path), CheckpointConfig(every_steps=1, keep=keep, keep_every_steps=keep_every_steps))
    assert sorted(complete_steps(str(tmp_path))) == kept


def test_incomplete_folders_are_neither_counted_nor_deleted(tmp_path: Path) -> None:
    write_marks(tmp_path, 1, 2)
    torn = checkpoint_folder(str(tmp_path), 99)  # as a copy that was broken off leaves it
    torn.mkdir()
    delete_old(str(tmp_path), CheckpointConfig(every_steps=1, keep=1))
    assert sorted(path.name for path in torn.parent.iterdir()) == ["step-00000002", "step-00000099"]


def test_what_is_no_complete_checkpoint_or_of_another_version_is_refused(config: Config, tmp_path: Path) -> None:
    final = checkpoint_folder(str(tmp_path), 7)
    with pytest.raises(ValueError) as error:
        read_progress(final)
    assert str(error.value) == (
        f"{final}: no complete checkpoint (no COMPLETE file); name a folder as checkpoints/step-00000100"
    )
    clear_place(final)
    complete(final, config, replace(PROGRESS, lanes={}))
    shutil.copytree(final, tmp_path / "old")
    (tmp_path / "old/progress.json").write_text('{"step": 7, "lanes": {}}')
    with pytest.raises(ValueError) as error:
        read_progress(tmp_path / "old")
    assert str(error.value) == (
        f"{tmp_path / 'old'}: written by another version (format None, this one reads 3); "
        "start a new run in another run.folder"
    )
