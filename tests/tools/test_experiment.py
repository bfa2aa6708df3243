from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.launching import Launcher, only_error
from tests.messages import names
from tests.tools.experiments.making import write

EXACT = """
title = "Exact"
question = "How near?"
method = "All is enumerated."
finding = "It is {gate@2:tv}."
[scale.cpu]
[scale.h100]
[arm.exact]
is_trained = false
[probe.exact]
kind = "exact"
title = "Exact heads"
kinds = ["gate"]
vary = "sampling.steps"
values = [1, 2]
[figure.tv]
title = "total variation"
probe = "exact"
is_lower_better = true
[claim.nearer]
says = "Two steps are nearer than one"
source = "a test"
larger = "gate@1:tv"
smaller = "gate@2:tv"
"""


def trained(digits: Path, root: Path) -> str:
    """An experiment of two trainings, the second of which begins with the first, and is long enough to be stopped."""
    data = f"data.mixture={digits}/mixture.yaml", f"data.tokenizer={digits}/words.tiktoken", "validation.mixture="
    own = "validation.every_steps=0", "checkpoint.every_steps=3", "sampling.steps=1", "train.deterministic=true"
    settings = [*data, *own]
    return f"""
title = "Trained"
question = "Which?"
method = "Both."
finding = "{{first:told_right}}"
[scale.cpu]
base = "{root}/configs/debug.toml"
settings = {json.dumps(settings)}
[scale.h100]
[arm.first]
settings = ["train.steps=3"]
[arm.second]
start = "first"
settings = ["train.steps=12"]
[probe.written]
kind = "written"
title = "Written"
documents = 2
kinds = ["told"]
[figure.told_right]
title = "right"
probe = "written"
is_share = true
"""


def command(path: Path, folder: Path, *more: str) -> list[str]:
    own = ["--runs", str(folder / "runs"), "--output", str(folder / "pages")]
    return ["tools/experiment.py", str(path), "--seeds", "1", *own, *more]


def rows_of(folder: Path) -> dict[str, object]:
    """What was measured, by arm."""
    (path,) = (folder / "pages").glob("*.results.jsonl")
    return {told["arm"]: told["rows"] for told in map(json.loads, path.read_text().splitlines())}


def test_what_is_measured_becomes_a_page_a_picture_csv_and_is_found_again(launcher: Launcher, tmp_path: Path) -> None:
    path = write(tmp_path, EXACT, "exact_heads")
    end = launcher.run(*command(path, tmp_path))
    assert end.code == 0
    page = (tmp_path / "pages/exact_heads.md").read_text()
    assert "0.700" in page
    assert "0.413" in page
    assert {file.suffix for file in (tmp_path / "pages").glob("exact_heads.*")} == {".md", ".png", ".csv", ".jsonl"}
    again = launcher.run(*command(path, tmp_path, "--against", str(tmp_path / "pages")))
    assert names(again.stdout.splitlines()[0], 1, 1)  # nothing is measured twice
    assert names(again.stdout.splitlines()[-1], 2, 2, tmp_path / "pages")


def test_an_arm_whose_data_nobody_has_is_left_out_and_the_rest_is_told(launcher: Launcher, tmp_path: Path) -> None:
    far = '[data.far]\nfile = "data/far.tar"\nprogram = "tools/far.py"\nneeds = "data/nobody/has.tar"\n'
    arms = '[arm.exact]\nis_trained = false\n[arm.afar]\nis_trained = false\ndata = "far"\n'
    text = EXACT.replace("[arm.exact]\nis_trained = false\n", far + arms)
    text = text.replace('larger = "gate@1:tv"', 'larger = "afar, gate@1:tv"').replace("gate@2", "exact, gate@2")
    end = launcher.run(*command(write(tmp_path, text, "halves"), tmp_path))
    assert end.code == 0, end.stderr
    assert names(next(line for line in end.stdout.splitlines() if "left out" in line), "afar", "data/nobody/has.tar")
    page = (tmp_path / "pages/halves.md").read_text()
    assert "**not measured**" in page
    assert "0.413" in page


def test_stopped_in_the_middle_it_goes_on_to_the_same_numbers(
    launcher: Launcher, tmp_path: Path, digits: Path, root: Path
) -> None:
    text = trained(digits, root)
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    whole = launcher.run(*command(write(tmp_path / "whole", text, "one"), tmp_path / "whole", "--jobs", "2"))
    assert whole.code == 0
    words = command(write(tmp_path / "stopped", text, "one"), tmp_path / "stopped", "--jobs", "2")
    job = launcher.start(*words)
    trained_folder = tmp_path / "stopped/runs/trained"
    deadline = time.monotonic() + 120
    while len([*trained_folder.glob("*/metrics.jsonl")]) < 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(job.pids[0], signal.SIGTERM)
    (end,) = job.wait()
    assert end.code != 0
    assert launcher.run(*words).code == 0
    assert rows_of(tmp_path / "stopped") == rows_of(tmp_path / "whole")


def test_two_processes_share_the_work(launcher: Launcher, tmp_path: Path) -> None:
    arms = "".join(f"[arm.a{number}]\nis_trained = false\n" for number in range(4))
    text = (
        EXACT.replace("[arm.exact]\nis_trained = false\n", arms)
        .replace("gate@", "a0, gate@")
        .replace("{gate@2:tv}", "")
    )
    words = command(write(tmp_path, text, "shared"), tmp_path, "--jobs", "1")
    jobs = [launcher.start(*words) for _ in range(2)]
    ends = [end for job in jobs for end in job.wait()]
    assert [end.code for end in ends] == [0, 0]
    done = [sum("about" in line for line in end.stdout.splitlines()) for end in ends]
    assert sum(done) == 4
    assert all(done)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("alchemy",), ("alchemy", "heads", "steps")),
        (("heads", "--seeds", "0"), ("--seeds", 0)),
        (("heads", "--jobs", "-1"), ("--jobs", -1)),
        (("latency", "--scale", "h100"), ("latency", "--scale", "h100")),
    ],
)
def test_what_cannot_be_is_refused(words: tuple[str, ...], said: tuple[object, ...], launcher: Launcher) -> None:
    end = launcher.run("tools/experiment.py", *words)
    assert end.code == 2
    assert names(only_error(end), *said)


def test_at_the_scale_of_h100s_the_launcher_trains_and_a_suite_asks(
    launcher: Launcher, tmp_path: Path, digits: Path, root: Path
) -> None:
    """On a host without GPUs: what is launched runs on its cores."""
    (tmp_path / "captions.toml").write_text(
        f'[task.told]\nsource = "shards"\npath = "{digits}/single-heldout-000000.tar"\nprompt = "{{picture}}"\n'
        'count = 2\ngroup = 2\nscores = ["captions"]\n'
    )
    settings = [f"data.mixture={digits}/mixture.yaml", f"data.tokenizer={digits}/words.tiktoken", "train.steps=2"]
    settings += ["validation.mixture=", "validation.every_steps=0", "sampling.steps=1", "data.packs_per_step=2"]
    text = (
        'title = "Large"\nquestion = "Which?"\nmethod = "Both."\nfinding = ""\n[scale.cpu]\n[scale.h100]\n'
        f'base = "{root}/configs/debug.toml"\nsuite = "{tmp_path}/captions.toml"\nfigures = ["told/bleu_1"]\n'
        f"settings = {json.dumps(settings)}\n[arm.plain]\n[arm.fast]\nh100 = ['optim.lr=1e-2']\n"
    )
    alone = {"ONEFLOW_HEALTH": "off", "ONEFLOW_PROCESSES": "2"}
    words = command(write(tmp_path, text, "large"), tmp_path, "--scale", "h100", "--jobs", "1")
    end = launcher.run(*words, env=alone)
    assert end.code == 0, end.stdout + end.stderr
    page = (tmp_path / "pages/large-h100.md").read_text()
    assert "told/bleu_1" in page
    assert "| fast |" in page
    assert "2 x cpu" in next((tmp_path / "runs/trained").glob("*.log")).read_text()
