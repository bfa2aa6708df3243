from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.launching import Launcher, oneflow, only_error
from tests.precompute.making import FLAGS, contents, png, write_shards, write_tar

TOOL = oneflow("precompute")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("raw")
    write_shards(folder, num_shards=4, samples=60)
    return f"{folder}/raw-{{00..03}}.tar"


@pytest.fixture(scope="module")
def unbroken(launcher: Launcher, raw: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("unbroken") / "out"
    end = launcher.run(*TOOL, raw, folder, *FLAGS)
    assert end.code == 0, end.stderr
    return contents(folder)


def test_a_run_ends_with_a_line_of_json(launcher: Launcher, raw: str, tmp_path: Path) -> None:
    end = launcher.run(*TOOL, raw, tmp_path / "out", *FLAGS)
    assert end.code == 0, end.stderr
    (line,) = end.stdout.splitlines()
    summary = json.loads(line)
    assert (summary["images"], summary["samples"], summary["quarantined"], summary["shards"]) == (248, 248, 0, 4)
    assert summary["images_per_second"] <= summary["encoder_images_per_second"]
    assert summary["overhead"] == pytest.approx(
        summary["encoder_images_per_second"] / summary["images_per_second"] - 1, rel=1e-2
    )
    assert "248/248" in end.stderr


def test_runs_that_are_killed_at_any_moment_come_to_the_same_bytes(
    launcher: Launcher, raw: str, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    for place, milliseconds in enumerate((0, 30, 60, 100, 150)):
        job = launcher.start(*TOOL, raw, folder, *FLAGS)
        while not (folder / "settings.json").exists():
            time.sleep(0.001)
        time.sleep(milliseconds / 1000 + 0.1 * (place > 0))
        job.kill()
        job.wait()
    assert launcher.run(*TOOL, raw, folder, *FLAGS).code == 0
    assert contents(folder) == unbroken


@pytest.mark.parametrize("num_ranks", [0, 2])
def test_two_at_once_share_the_work_and_come_to_the_same_bytes(
    num_ranks: int, launcher: Launcher, raw: str, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    if num_ranks:
        ends = launcher.run_ranks(num_ranks, *TOOL, raw, tmp_path / "out", *FLAGS)
    else:
        jobs = [launcher.start(*TOOL, raw, tmp_path / "out", *FLAGS) for _ in range(2)]
        ends = [end for job in jobs for end in job.wait()]
    assert [end.code for end in ends] == [0, 0], ends[0].stderr + ends[1].stderr
    assert sum(json.loads(end.stdout)["images"] for end in ends) == 248
    assert contents(tmp_path / "out") == unbroken
    if num_ranks:
        assert ends[1].stderr == ""  # rank 0 shows the progress


def test_check_finds_a_whole_output_good_and_names_a_damaged_shard(
    launcher: Launcher, unbroken: dict[str, bytes], tmp_path: Path
) -> None:
    for name, content in unbroken.items():
        (tmp_path / name).write_bytes(content)
    end = launcher.run(*TOOL, tmp_path, "--check", "--autoencoder", "pixels")
    assert end.code == 0, end.stderr
    assert [line.split()[0] for line in end.stdout.splitlines()] == [
        "shard",
        *sorted(n for n in unbroken if n.endswith("tar")),
    ]
    damaged = bytearray(unbroken["raw-02.tar"])
    damaged[5000] ^= 1
    (tmp_path / "raw-02.tar").write_bytes(bytes(damaged))
    end = launcher.run(*TOOL, tmp_path, "--check")
    assert end.code == 2
    assert only_error(end).startswith(f"error: {tmp_path}: 1 of 4 shards are bad: raw-02.tar (")


def test_a_dry_run_counts_and_writes_nothing(launcher: Launcher, raw: str, tmp_path: Path) -> None:
    end = launcher.run(*TOOL, raw, tmp_path / "out", *FLAGS, "--dry-run", env={"WORLD_SIZE": "8"})
    assert end.code == 0, end.stderr
    lines = end.stdout.splitlines()
    assert lines[0].startswith("input   4 shards, 248 samples, 248 images, 0.")
    assert [line.split()[0] for line in lines] == ["input", "output", "rate", "time"]
    assert lines[3].endswith(" on 8")
    assert not list(tmp_path.iterdir())


def test_other_settings_are_refused(launcher: Launcher, raw: str, unbroken: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_bytes(unbroken["settings.json"])
    end = launcher.run(*TOOL, raw, tmp_path, *FLAGS, "--dtype", "float32")
    assert end.code == 2
    assert only_error(end) == (
        f'error: {tmp_path}/settings.json: dtype is "float16" there but "float32" now; '
        "use the same options and versions, or another output folder"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["settings.json"]


def test_too_many_bad_samples_are_one_line(launcher: Launcher, tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", [("0.png", png(0)), ("1.png", png(1)), ("1.txt", b"x")])
    end = launcher.run(*TOOL, shard, tmp_path / "out", *FLAGS)
    assert end.code == 2
    assert only_error(end).startswith(f"error: {shard}: 1 of 2 samples are bad, more than --max-bad 0.1 allows (0: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x.tar", "out"), "--autoencoder: missing; name one, see --help"),
        (("x.tar", "out", *FLAGS), "source raw: no such shard x.tar; write the shards first or mend the pattern"),
        (("out", *FLAGS), "shards: none named; name them before the output folder, as 'raw/*.tar'"),
        (("x.tar", "out", "--check"), "--check: takes one output folder, but 2 paths are named; name that folder"),
    ],
)
def test_a_command_that_cannot_work_is_one_line(
    arguments: tuple[str, ...], message: str, launcher: Launcher, tmp_path: Path
) -> None:
    end = launcher.run(*TOOL, *arguments)
    assert (end.code, only_error(end)) == (2, f"error: {message}")


def test_a_full_disk_leaves_no_shard_that_looks_complete(launcher: Launcher, raw: str, tmp_path: Path) -> None:
    end = launcher.run(*TOOL, raw, tmp_path / "out", *FLAGS, file_limit=100_000)
    assert end.code == 2
    assert only_error(end).startswith("error: ")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["settings.json"]
    assert launcher.run(*TOOL, raw, tmp_path / "out", *FLAGS).code == 0
