from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from oneflow_dist.config import CheckpointConfig, Config, load_config
from oneflow_dist.guard.guard import GuardState
from oneflow_dist.progress import (
    FORMAT,
    Progress,
    checkpoint_folder,
    clear_place,
    complete,
    complete_steps,
    delete_old,
    find_latest,
    folder_beside,
    is_complete,
    read_config,
    read_progress,
)
from tests.messages import names, naming

PROGRESS = Progress(
    step=7,
    lanes={0: {"draws": [3], "waiting": [[0, 2]]}, 11: {"draws": [5], "waiting": []}},
    data={"tokenizer": "a hash"},
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
    assert (final / "COMPLETE").stat().st_size > 0  # tools that leave empty files out of a copy keep it
    assert sorted(path.name for path in final.iterdir()) == ["COMPLETE", "config.toml", "part", "progress.json"]
    assert read_progress(final) == PROGRESS
    assert load_config(final / "config.toml") == config


def test_progress_is_plain_json(config: Config, tmp_path: Path) -> None:
    final = checkpoint_folder(str(tmp_path), 7)
    clear_place(final)
    complete(final, config, PROGRESS)
    assert json.loads((final / "progress.json").read_text()) == {
        "format": 4,
        "step": 7,
        "data": {"tokenizer": "a hash"},
        "lanes": {str(index): lane for index, lane in PROGRESS.lanes.items()},
        "guard": {"norm_mean": 0.1 + 0.2, "accepted": 6, "skipped": 1},
    }


def test_a_checkpoint_has_the_ranks_file_that_its_ids_mean(config: Config, tmp_path: Path) -> None:
    final = checkpoint_folder(str(tmp_path), 7)
    clear_place(final)
    complete(final, config, PROGRESS, b"YQ== 0\n")
    assert (final / "tokenizer.tiktoken").read_bytes() == b"YQ== 0\n"


def test_a_place_is_cleared_of_what_a_save_that_died_has_left(tmp_path: Path) -> None:
    final = checkpoint_folder(str(tmp_path), 7)
    folder_beside(final).mkdir(parents=True)
    (folder_beside(final) / "__0_0.distcp").write_bytes(b"half")
    clear_place(final)
    assert [path.name for path in final.parent.rglob("*")] == ["step-00000007.incomplete"]


def test_what_has_the_name_of_a_checkpoint_is_never_written_over(tmp_path: Path) -> None:
    write_marks(tmp_path, 7)
    with pytest.raises(OSError, match=naming("step-00000007")):
        clear_place(checkpoint_folder(str(tmp_path), 7))
    assert is_complete(checkpoint_folder(str(tmp_path), 7))


def test_what_saves_that_were_broken_off_have_left_is_named_and_ignored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find_latest(str(tmp_path)) is None
    left = tmp_path / "checkpoints/step-00000020.incomplete"
    left.mkdir(parents=True)
    (left / "COMPLETE").touch()  # killed before it got its name
    assert find_latest(str(tmp_path)) is None
    assert names(capsys.readouterr().out, left)
    write_marks(tmp_path, 10)
    assert find_latest(str(tmp_path)) == tmp_path / "checkpoints/step-00000010"


@pytest.mark.parametrize(("before", "advice"), [([], "run.folder"), ([10, 20], "step-00000020")])
def test_a_newest_checkpoint_without_its_mark_is_refused(before: list[int], advice: str, tmp_path: Path) -> None:
    write_marks(tmp_path, *before, 30)
    (checkpoint_folder(str(tmp_path), 30) / "COMPLETE").unlink()
    with pytest.raises(ValueError, match=naming(f"{tmp_path}/checkpoints/step-00000030", "COMPLETE", advice)):
        find_latest(str(tmp_path))


def test_an_older_one_without_its_mark_is_in_nobodys_way(tmp_path: Path) -> None:
    write_marks(tmp_path, 10, 20)
    (checkpoint_folder(str(tmp_path), 10) / "COMPLETE").unlink()
    assert find_latest(str(tmp_path)) == checkpoint_folder(str(tmp_path), 20)


def test_checkpoints_that_have_been_and_are_not_there_are_missed(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (7, 8):
        clear_place(checkpoint_folder(str(tmp_path), step))
        complete(checkpoint_folder(str(tmp_path), step), config, PROGRESS)
    checkpoints = tmp_path / "checkpoints"
    shutil.move(checkpoint_folder(str(tmp_path), 8), tmp_path / "elsewhere")
    assert find_latest(str(tmp_path)) == checkpoint_folder(str(tmp_path), 7)
    assert names(capsys.readouterr().out, "step-00000008")
    checkpoints.rename(tmp_path / "unmounted")
    with pytest.raises(ValueError, match=naming(tmp_path, "step-00000008", "checkpoints/", "run.folder")):
        find_latest(str(tmp_path))


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
        (1, 0, [12]),
        (2, 0, [11, 12]),
        (9, 0, [3, 4, 6, 9, 10, 11, 12]),
        (1, 5, [10, 12]),  # 10 is a multiple, and not one of the newest that are counted
        (2, 3, [3, 6, 9, 10, 11, 12]),
        (1, 4, [4, 11, 12]),
    ],
)
def test_the_newest_checkpoints_and_the_multiples_are_kept(
    keep: int, keep_every_steps: int, kept: list[int], tmp_path: Path
) -> None:
    write_marks(tmp_path, 3, 4, 6, 9, 10, 11, 12)
    delete_old(str(tmp_path), CheckpointConfig(every_steps=1, keep=keep, keep_every_steps=keep_every_steps))
    assert sorted(complete_steps(str(tmp_path))) == kept


def test_a_checkpoint_that_is_a_link_is_not_deleted(tmp_path: Path) -> None:
    write_marks(tmp_path, 1, 2)
    first = checkpoint_folder(str(tmp_path), 1)
    first.rename(tmp_path / "elsewhere")
    first.symlink_to(tmp_path / "elsewhere")
    delete_old(str(tmp_path), CheckpointConfig(every_steps=1, keep=1))
    assert is_complete(first)


def damage(name: str, content: str | None, config: Config, tmp_path: Path) -> Path:
    """A checkpoint of which one file is another, or (None) missing."""
    final = checkpoint_folder(str(tmp_path), 7)
    clear_place(final)
    complete(final, config, PROGRESS)
    (final / name).unlink()
    if content is not None:
        (final / name).write_text(content)
    return final


@pytest.mark.parametrize(
    "content", [None, "", "[]", f'{{"format": {FORMAT}}}', f'{{"format": {FORMAT}, "step": 7, "lanes": 3}}']
)
def test_a_damaged_progress_is_named_with_a_way_out(content: str | None, config: Config, tmp_path: Path) -> None:
    final = damage("progress.json", content, config, tmp_path)
    with pytest.raises(ValueError, match=naming(final / "progress.json")):
        read_progress(final)


@pytest.mark.parametrize("content", [None, "", "garbage"])
def test_a_damaged_config_is_named_with_a_way_out(content: str | None, config: Config, tmp_path: Path) -> None:
    final = damage("config.toml", content, config, tmp_path)
    with pytest.raises(ValueError, match=naming(final, "config.toml")):
        read_config(final)


def test_what_is_no_complete_checkpoint_or_of_another_version_is_refused(config: Config, tmp_path: Path) -> None:
    final = checkpoint_folder(str(tmp_path), 7)
    with pytest.raises(ValueError, match=naming(final, "COMPLETE", "checkpoints/step-")):
        read_progress(final)
    clear_place(final)
    complete(final, config, replace(PROGRESS, lanes={}))
    shutil.copytree(final, tmp_path / "old")
    (tmp_path / "old/progress.json").write_text('{"step": 7, "lanes": {}}')
    with pytest.raises(ValueError, match=naming(tmp_path / "old", None, FORMAT, "run.folder")):
        read_progress(tmp_path / "old")
