from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from oneflow_dist import progress
from oneflow_dist.model.flops import num_parameters
from oneflow_dist.reporting import runs
from oneflow_dist.reporting.runs import read_run, read_runs
from oneflow_dist.trained import load_model
from tests.launching import ROOT, Run
from tests.messages import naming
from tests.reporting.made_up import step_line, write_attempt, write_lines, write_run, write_samples


def write_checkpoint(run: Path, step: int, is_complete: bool = True) -> None:
    folder = run / f"checkpoints/step-{step:08d}"
    folder.mkdir(parents=True)
    for rank in range(3):
        (folder / f"__{rank}_0.distcp").write_bytes(b"1234")
    if is_complete:
        (folder / "COMPLETE").write_text("x")


def test_a_run_of_training_is_read_as_a_whole(unbroken: Run) -> None:
    run = read_run(unbroken.folder, "mine")
    assert run.name == "mine"
    assert run.last_step == run.num_steps == 20
    assert run.status.state == "finished"
    assert run.ranks == 1
    assert run.parameters == num_parameters(load_model(str(unbroken.folder))[0])
    assert [checkpoint.step for checkpoint in run.checkpoints] == sorted(progress.complete_steps(str(unbroken.folder)))
    assert list(run.samples) == [20]


def test_names_are_those_of_the_module_that_writes_checkpoints() -> None:
    assert (runs.COMPLETE, runs.NAME) == (progress.COMPLETE, progress.NAME)


def test_reading_and_drawing_a_run_loads_no_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from oneflow_dist.reporting.page import render; "
        "render([Path(sys.argv[1])]); print('torch' in sys.modules)"
    )
    run = write_run(tmp_path / "run")
    end = subprocess.run([sys.executable, "-c", program, run], capture_output=True, check=True, cwd=ROOT)
    assert end.stdout == b"False\n"


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name) for name in ("a/run", "b/run", "c/other")]
    assert [run.name for run in read_runs(folders)] == ["a/run", "b/run", "c/other"]
    assert [run.name for run in read_runs(folders[1:])] == ["run", "other"]


def test_a_run_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    with pytest.raises(ValueError, match=naming("RUN", folder / "../run")):
        read_runs([folder, folder / "../run"])


def test_a_folder_without_metrics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=naming(tmp_path / "metrics.jsonl")):
        read_runs([tmp_path])


def test_metrics_alone_are_a_run(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", [step_line(1), step_line(2)])
    run = read_run(tmp_path, "run")
    assert (run.last_step, run.num_steps, run.ranks, run.parameters) == (2, 0, 0, 0)
    assert run.config == {}
    assert run.status.state == "ended"


def test_a_damaged_config_is_named(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "config.toml").write_text("[run")
    with pytest.raises(ValueError, match=naming(folder / "config.toml")):
        read_run(folder, "run")


def test_complete_checkpoints_are_listed_with_what_they_take(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    for step in (8, 4):
        write_checkpoint(folder, step)
    write_checkpoint(folder, 12, is_complete=False)
    (folder / "checkpoints/step-00000016.incomplete").mkdir()
    run = read_run(folder, "run")
    assert [(checkpoint.step, checkpoint.size) for checkpoint in run.checkpoints] == [(4, 13), (8, 13)]
    assert run.ranks == 3  # so many have written
    assert run.parameters == 0  # there is no index


def test_a_checkpoint_that_is_being_deleted_is_none(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_checkpoint(folder, 4)
    write_checkpoint(folder, 8)
    (folder / "checkpoints/step-00000004/__0_0.distcp").unlink()
    (folder / "checkpoints/step-00000004/__0_0.distcp").symlink_to(tmp_path / "gone")
    assert [checkpoint.step for checkpoint in read_run(folder, "run").checkpoints] == [8]


@pytest.mark.parametrize("content", [b"", b"no pickle", b"\x80\x04cos\nsystem\n(S'exit 1'\ntR."])
def test_an_index_that_is_none_says_nothing_and_runs_nothing(content: bytes, tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_checkpoint(folder, 4)
    (folder / "checkpoints/step-00000004/.metadata").write_bytes(content)
    assert read_run(folder, "run").parameters == 0


def test_the_log_or_the_config_tells_the_ranks_before_checkpoints_do(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", "parallel.shard=4", "parallel.replicate=2", "parallel.context=2")
    write_checkpoint(folder, 4)
    assert read_run(folder, "run").ranks == 16
    write_attempt(folder, 0)
    (folder / "launches/job-7/rank-00000.log").write_text("32 x cuda, 5 parameters\n")
    run = read_run(folder, "run")
    assert (run.ranks, run.parameters) == (32, 5)


def test_sums_over_steps_know_their_seconds(tmp_path: Path) -> None:
    lines = [step_line(step, seconds=step) for step in (1, 2, 3)]
    del lines[1]["tokens_per_second"]
    write_lines(tmp_path / "metrics.jsonl", [*lines, {"step": 3, "validation/seconds": 9.0}])
    run = read_run(tmp_path, "run")
    assert run.total("seconds") == 6.0
    assert run.total("samples") == 300.0
    assert run.so_far("tokens_per_second", is_speed=True).tolist() == [1000.0, 1000.0, 4000.0]
    assert run.total("images_per_second", is_speed=True) == 0.0
    assert run.recent("seconds") == 2.0
    assert run.recent("data_wait") is None


def test_what_the_guards_have_seen_is_in_order(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_lines(folder / "metrics.jsonl", [step_line(1), step_line(7, skipped="spike")])
    (folder / "bad-batch-step-00000007-rank-3-pack-1.pt").write_bytes(b"")
    (folder / "hangs").mkdir()
    stack = "Thread 0x01 (most recent call first):\n  File x, line 3\n"
    told = '2030-01-01 10:00:00 node1, in "waiting for data" of step 5\n' + stack
    (folder / "hangs/rank-2.txt").write_text(told + told.replace("step 5", "step 9"))
    events = read_run(folder, "run").events
    assert [step for step, _ in events] == [5, 7, 7, 9]
    for (_, what), parts in zip(
        events,
        [("rank 2", "node1", "waiting for data"), ("rank 3", "pack 1"), ("spike",), ("rank 2",)],
        strict=True,
    ):
        assert all(part in what for part in parts)


def test_samples_are_known_by_their_steps(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    write_samples(folder, 8, 4)
    assert list(read_run(folder, "run").samples) == [4, 8]
