"""tools/measure_gpu.py on a CPU: the same program on small shapes."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import measure_gpu
from oneflow_dist.config import Config, write_config
from oneflow_dist.measuring.jobs import Job, first_part, second_part
from oneflow_dist.measuring.lines import Notebook
from oneflow_dist.measuring.report import by_job, of_kind
from oneflow_dist.measuring.schedule import Line
from tests.launching import Launcher, only_error

SMALL = ("data.rows_per_pack=512", "data.tokens_per_pack=512", "model.vocab_size=384")
JOBS = {job.name: job for job in (*first_part(512, 128), *second_part(512, 128))}
COMMANDS = r"^    python3 -m pip install (?:.*\\\n)*.*tools/measure_gpu.py.*$"  # of docs/gpu.md


@pytest.fixture
def tiny(make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as all programs of tests have it
    (tmp_path / "config.toml").write_text(write_config(make_config(*SMALL)))
    return tmp_path / "config.toml"


@pytest.fixture
def measure(tiny: Path) -> Callable[..., Notebook]:
    """Measure jobs on a small config."""

    def run(jobs: list[Job], *overrides: str, seconds: float = 240.0) -> Notebook:
        notebook = Notebook(tiny.parent / "results")
        shared = {"config": str(tiny), "overrides": overrides, "folder": str(notebook.folder)}
        measure_gpu.measure_all(jobs, shared, notebook, seconds, "0123abc")
        return notebook

    return run


def reasons(lines: list[Line]) -> dict[str, str]:
    return {end["job"]: end["reason"] for end in of_kind(lines, "end") if end["status"] != "measured"}


def test_the_whole_program_measures_one_job_of_each_kind(
    measure: Callable[..., Notebook], tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peer = replace(JOBS["torchtitan 4 x 128 none"], overrides=("train.compile=false",), after=())
    real = JOBS["bag loss, real pack, forward and backward, as tuned"]
    names = "device", "ours bf16 eager none", "numbers of rows and draws", "launches of rows"
    jobs = [
        *(JOBS[name] for name in names),
        peer,
        replace(real, after=()),
        replace(JOBS["counters"], needs="no-such-program"),
    ]
    notebook = measure(jobs)
    lines = notebook.lines
    assert reasons(lines) == {"counters": "no-such-program is not installed"}
    assert {line["kind"] for line in lines} == {"machine", "rate", "step", "check", "contender", "kernels", "end"}
    assert all(check["is_right"] for check in of_kind(lines, "check"))
    assert f"{real.name}" in by_job(lines, "contender", "case")
    assert lines[0]["commit"] == "0123abc"
    assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)
    assert len(capsys.readouterr().out.splitlines()) == len(lines)

    measure_gpu.plan(notebook, str(tiny), [])
    measure_gpu.plan(notebook, str(tiny), [])  # what is planned is not planned again
    (plan,) = of_kind(notebook.lines, "plan")
    assert plan["peak_gib"] == pytest.approx(sum(plan["by_kind"].values()))
    measure_gpu.draw(notebook)
    files = {path.name for path in notebook.folder.iterdir()}
    assert files == {"results.jsonl", "report.md", "log.txt", "steps.png", "contests.png"}


def test_one_variant_that_cannot_be_made_ends_no_other(measure: Callable[..., Notebook]) -> None:
    float8 = replace(JOBS["ours float8 compiled none"], after=())
    lines = measure([float8, JOBS["ours bf16 eager none"]], "model.mlp_width=40").lines
    assert list(reasons(lines)) == [float8.name]
    assert reasons(lines)[float8.name].startswith("ValueError: blocks.0.mlp.gate: a weight of 40 x 32 cannot")
    assert [step["name"] for step in of_kind(lines, "step")] == ["ours bf16 eager none"]


def test_without_time_all_is_skipped_and_still_written(measure: Callable[..., Notebook]) -> None:
    found = reasons(measure(list(JOBS.values()), seconds=0.0).lines)
    assert found["device"] == "no time left"
    assert found.keys() == JOBS.keys()


def test_nothing_is_planned_while_the_device_is_there(root: Path) -> None:
    for path in (root / "oneflow_dist" / "measuring").glob("*.py"):
        assert "planning.trace" not in path.read_text(), path


def documented(root: Path) -> list[str]:
    """The commands to paste, as docs/gpu.md has them."""
    return re.findall(COMMANDS, (root / "docs" / "gpu.md").read_text(), re.MULTILINE)


def make_wheel(folder: Path) -> None:
    """The smallest there is."""
    folder.mkdir()
    info = "nothing_at_all-1.0.dist-info"
    with zipfile.ZipFile(folder / "nothing_at_all-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("nothing_at_all.py", "")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: nothing_at_all\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: a test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


@pytest.mark.parametrize("loopback", ["down", "up"])
def test_the_commands_to_paste_start_on_a_machine_without_a_network(root: Path, tiny: Path, loopback: str) -> None:
    first, second = documented(root)
    command = {"down": first, "up": second}[loopback]
    job = {"down": "device", "up": "ours bf16 eager none"}[loopback]
    if subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode:
        pytest.skip(
            "to leave the network needs root or user namespaces. What jobs are given for a machine without one is "
            "tested for everybody in tests/measuring/test_processes.py"
        )
    folder = tiny.parent / "copy"  # as it arrives on that machine: with wheels, without git
    folder.mkdir()
    for name in ("configs", "kernels", "oneflow_dist", "tools"):
        (folder / name).symlink_to(root / name)
    make_wheel(folder / "wheels")
    small = f"--config {shlex.quote(str(tiny))} --only {shlex.quote(job)}"
    raise_it = "ip link set lo up && " if loopback == "up" and shutil.which("ip") else ""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    site = {"PATH": path, "OUT": str(tiny.parent / "out"), "TMPDIR": str(tiny.parent)}
    end = subprocess.run(
        ["unshare", "-rn", "sh", "-c", f"{raise_it}{command.strip()} {small}"],
        cwd=folder,
        env={**{key: value for key, value in os.environ.items() if key != "PYTHONPATH"}, **site},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert end.returncode == 0, end.stderr
    lines = Notebook(tiny.parent / "out").lines
    assert reasons(lines) == {}
    assert any(line.get("job") == job for line in lines if line["kind"] != "end"), end.stdout


def test_wheels_are_those_that_the_doc_names_and_the_tested_versions(root: Path) -> None:
    named = dict(re.findall(r"([\w-]+)==([\d.]+)", (root / "Makefile").read_text().partition("\nwheels:")[2]))
    locked = dict(re.findall(r"^([\w-]+)==([\d.]+)", (root / "requirements.lock").read_text(), re.MULTILINE))
    assert {"torchtitan", "liger-kernel", "tyro"} <= named.keys()
    for package in named.keys() & locked.keys():
        assert named[package] == locked[package], package


def test_a_config_that_is_not_there_is_said_in_one_line(launcher: Launcher) -> None:
    end = launcher.run("tools/measure_gpu.py", "--config", "configs/no-such.toml")
    assert end.code == 2
    assert only_error(end).startswith("error: configs/no-such.toml: no such config file")
