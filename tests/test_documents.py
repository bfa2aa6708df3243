"""What the documents say is so: every command runs, every link, path and key of a config exists."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch

from oneflow_dist.config import Config, load_config
from oneflow_dist.data.conversations import read_document
from oneflow_dist.data.loader import PackLoader
from oneflow_dist.data.mixture import load_mixture
from oneflow_dist.evaluation.suite import load_suite
from oneflow_dist.guard.bad_batches import keep_suspects
from oneflow_dist.serving.requests import GenerateBody, read_body
from tests.checkout import Checkouts, typed
from tests.documents import (
    DOCUMENTS,
    ROOT,
    TOP,
    Block,
    Command,
    blocks_of,
    commands_of,
    keys_of,
    links_of,
    paths_of,
)
from tests.launching import Launcher
from tools.benchmark.serving import serve

# tests/test_extending.py runs those of docs/extending.md, each after its diff.
RUN_HERE = [document for document in DOCUMENTS if document.name != "extending.md"]
COMMANDS = list(dict.fromkeys(command for document in RUN_HERE for command in commands_of(document)))
BLOCKS = [block for document in DOCUMENTS for block in blocks_of(document) if not block.holds_commands]
CLIENTS = [block for block in BLOCKS if block.text.startswith("from openai import")]
LOADERS = [block for block in BLOCKS if block.text.startswith(("from transformers import", "from diffusers import"))]
PYTHON = [b for b in BLOCKS if b.text.startswith(("from ", "import ")) and b not in (*CLIENTS, *LOADERS)]
MIXTURES = [block for block in BLOCKS if block.text.startswith("sources:")]
SUITES = [block for block in BLOCKS if block.text.startswith("[task.")]
REQUESTS = [block for block in BLOCKS if block.text.startswith('{"model"')]
CONVERSATIONS = [block for block in BLOCKS if block.text.startswith('{"') and block not in REQUESTS]
# How the other blocks begin. A block of another kind fails until it has a test of its own, or a place here.
TREES = ("configs/ ", "runs/quickstart/\n", "runs/8b/launches/", "tar shard -> ")
MESSAGES = ("step 812, rank 3: ", "error: rank 0 on node1 ", "step 800: ", "error: data worker 1, ", "error: node7: ")
MESSAGES += ("step 23: the last 3 steps took ", "data.packs_per_step (128) on 56 ")
MESSAGES += ("step 4 was in the memory of ", "error: checkpoint.memory_folder: ")
TRANSCRIPTS = [block for block in BLOCKS if block.text.startswith("$ ")]
COMMIT = ("area: ",)
DIFFS = ("--- ",)

MADE = {"config.toml", "report.md", "kernels/results", "kernels/oneflow_kernels/tuned"}  # by the tools
MADE |= {
    "tools/colours.py",
    "configs/data/colours.yaml",
    "configs/data/digits_captions.yaml",
}  # by diffs of docs/extending.md
SECTIONS = {field.name: get_type_hints(Config)[field.name] for field in dataclasses.fields(Config)}
TABLES = {section: kind if dataclasses.is_dataclass(kind) else get_args(kind)[1] for section, kind in SECTIONS.items()}
KEYS = {f"{section}.{field.name}" for section, kind in TABLES.items() for field in dataclasses.fields(kind)}
KEYS |= {f"modality.{name}" for path in (ROOT / "configs").glob("*.toml") for name in load_config(path).modality}
PARAMETERS = {"heads.norm"}  # of the model, under the name of a section
ADDED = {"flow.calm_weight", "modality.colour"}  # by diffs of docs/extending.md


def name_of(document: Path) -> str:
    return str(document.relative_to(ROOT))


@pytest.fixture(scope="module")
def checkouts(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> Checkouts:
    folder = tmp_path_factory.mktemp("checkouts")
    made = Checkouts(folder, launcher, [*COMMANDS, *(text for block in TRANSCRIPTS for text in transcribed(block))])
    for target in ("quickstart", "stages"):  # what is made by make alone
        made.commands += recipes(target, made.new_folder())
    return made


def transcribed(block: Block) -> list[str]:
    """The commands of a transcript, on one line each."""
    lines = re.findall(r"^\$ (.+(?:\\\n.*)*)", block.text, re.MULTILINE)
    words = [line.replace("\\\n", " ").removeprefix("source .venv/bin/activate").removeprefix(" && ") for line in lines]
    return [text for text in words if text.startswith(("make", "oneflow", "python"))]


def recipes(target: str, here: Path) -> list[Command]:
    """What make would run, and nothing of it done."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # of `make test` itself
    end = subprocess.run(["make", "-n", target], cwd=here, env=env, capture_output=True, text=True, check=False)
    assert end.returncode == 0, end.stderr
    lines = end.stdout.replace("\\\n", " ").splitlines()
    return [typed(line) for line in lines if not line.startswith("make: ")]


@pytest.mark.parametrize("text", COMMANDS, ids=COMMANDS)
def test_a_command_runs(text: str, checkouts: Checkouts) -> None:
    run(typed(text), checkouts)


def run(command: Command, checkouts: Checkouts) -> None:
    """In small; or, of the few that cannot run within a test, what they run in turn or whether it is here."""
    if command.program in ELSEWHERE:
        ELSEWHERE[command.program](command, checkouts)
    else:
        checkouts.run(command)


def run_recipes(command: Command, checkouts: Checkouts) -> None:
    """`make` would train for minutes and test these tests: its recipes run in small."""
    assert command.arguments
    for target in command.arguments:
        for recipe in recipes(target, checkouts.new_folder()):
            run(recipe, checkouts)


def run_phases(command: Command, checkouts: Checkouts) -> None:
    """`.ci/run` is what runs these tests: its phases are run one by one."""
    phases = re.findall(r"^phase (.+)", (ROOT / command.program).read_text(), re.MULTILINE)
    assert phases
    for phase in phases:
        run(typed(phase), checkouts)


def find_tests(command: Command, checkouts: Checkouts) -> None:
    """The tests that a command names are run with this one."""
    for path in [argument for argument in command.arguments if argument.startswith("tests")]:
        assert list((ROOT / path).rglob("test_*.py")) or (ROOT / path).is_file(), path


def compare_versions(command: Command, checkouts: Checkouts) -> None:
    """A test has no network: versions are those of requirements.lock and the Makefile, extras are in pyproject.toml."""
    pinned = (ROOT / "requirements.lock").read_text() + (ROOT / "Makefile").read_text()
    versions = dict(re.findall(r"([\w.-]+)==([\w.]+)", pinned))
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in command.arguments:
        for name, version in re.findall(r"^([\w.-]+)==([\w.]+)$", word):
            assert versions.get(name, version) == version, word
        assert set(re.findall(r"^oneflow_dist\[(\w+)\]$", word)) <= set(extras), word


def find_program(command: Command, checkouts: Checkouts) -> None:
    """Whole runs of linters are phases of `.ci/run`; tests/tools run what asks a network; an image takes minutes."""
    assert (checkouts.new_folder() / command.program).exists(), command.program


def find_site(command: Command, checkouts: Checkouts) -> None:
    """The site takes a minute: it is a phase of `.ci/run`, and tests/tools/documentation looks at its pages."""
    assert (checkouts.new_folder() / "mkdocs.yml").exists()


def run_contained(command: Command, checkouts: Checkouts) -> None:
    """Without an image: what a container is given runs in small, the rest is compared with the Dockerfile."""
    words, dockerfile = command.arguments, (ROOT / "Dockerfile").read_text()
    for word in words:
        if name := re.match(r"[A-Z_]+(?==)", word):
            assert re.search(rf"^ARG {name[0]}=", dockerfile, re.MULTILINE), word
        if mount := re.match(r"[\w./$]+:(/oneflow_dist/\w+)", word):
            assert mount[1].rpartition("/")[2] in ("data", "runs", "configs"), word
    image = [number for number, word in enumerate(words) if re.fullmatch(r"oneflow_dist(\.sif|:\w+)?", word)][-1]
    if words[0] not in ("run", "exec") or image + 1 == len(words):
        return
    first, *rest = words[image + 1 :]
    is_program = first in ("oneflow", "python", "torchrun", "make") or first.startswith("launch/")
    text = shlex.join([first, *rest] if is_program else ["python", "-m", "oneflow_dist.train", first, *rest])
    run(typed("make quickstart" if first == "quickstart" else text), checkouts)


def not_ours(command: Command, checkouts: Checkouts) -> None:
    """A program of the machine, which needs a GPU."""


ELSEWHERE = {
    "make": run_recipes,
    ".ci/run": run_phases,
    "pytest": find_tests,
    "pip": compare_versions,
    ".venv/bin/ruff": find_program,
    ".venv/bin/mypy": find_program,
    ".venv/bin/hadolint": find_program,
    ".venv/bin/shellcheck": find_program,
    "tools/lock.py": find_program,
    "tools/audit.py": find_program,
    "tools/held_out.py": find_program,
    "tests/torture/image.py": find_program,
    **{f"tests/torture/{name}.py": find_program for name in ("faults", "fault_table")},
    **{f"tests/torture/{name}.py": find_program for name in ("hostile", "mistakes", "nodes", "page", "slurm")},
    "mkdocs": find_site,
    "nvidia-smi": not_ours,
    **dict.fromkeys(("docker", "podman", "apptainer"), run_contained),
}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.place)
def test_a_block_without_commands_is_of_a_kind_that_is_looked_at(block: Block) -> None:
    assert block in (
        *PYTHON,
        *CLIENTS,
        *LOADERS,
        *REQUESTS,
        *MIXTURES,
        *SUITES,
        *TRANSCRIPTS,
        *CONVERSATIONS,
    ) or block.text.startswith((*TREES, *MESSAGES, *COMMIT, *DIFFS)), (
        f"{block.place}: let its first line begin with a program, or say in tests/test_documents.py what it is"
    )


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("block", PYTHON, ids=lambda block: block.place)
def test_python_runs(block: Block, checkouts: Checkouts, monkeypatch: pytest.MonkeyPatch) -> None:
    here = checkouts.new_folder()
    for path in ("data/digits", "runs/quickstart"):
        checkouts.put(path, here)
    (here / "runs/quickstart").rename(here / "runs/1b")
    monkeypatch.chdir(here)
    loader = PackLoader(load_config("configs/quickstart.toml", ["data.workers=0"]), 0, 1)
    keep_suspects(torch.ones(1, 5), loader.next_step(), 812, "runs/1b")
    (kept,) = Path("runs/1b").glob("*.pt")
    for name in re.findall(r'"(runs/1b/bad-batch-\S+\.pt)"', block.text):
        kept.rename(name)
    exec(compile(block.text, block.place, "exec"), {})


@pytest.mark.parametrize("block", LOADERS, ids=lambda block: block.place)
def test_an_exported_folder_is_loaded(
    block: Block, checkouts: Checkouts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = checkouts.new_folder()
    for name in set(re.findall(r'from_pretrained\("([\w/]+)"', block.text)):
        checkouts.put(name, here)
    for module in ("transformers.dynamic_module_utils", "diffusers.utils.dynamic_modules_utils"):
        monkeypatch.setattr(f"{module}.HF_MODULES_CACHE", str(here / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.chdir(here)
    exec(compile(block.text, block.place, "exec"), {})
    assert "print" not in block.text or capsys.readouterr().out


@pytest.mark.parametrize("block", CLIENTS, ids=lambda block: block.place)
def test_a_client_is_answered(block: Block, checkouts: Checkouts, capsys: pytest.CaptureFixture[str]) -> None:
    here = checkouts.new_folder()
    checkouts.put("runs/quickstart", here)
    with serve(here / "runs/quickstart") as service:
        exec(compile(block.text.replace("http://127.0.0.1:8000/", service.url), block.place, "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.parametrize("block", REQUESTS, ids=lambda block: block.place)
def test_a_request_can_be_read(block: Block) -> None:
    assert read_body(GenerateBody, block.text.encode()).parts


@pytest.mark.parametrize("block", TRANSCRIPTS, ids=lambda block: block.place)
def test_a_transcript_is_of_commands_that_run_and_shows_no_traceback(block: Block, checkouts: Checkouts) -> None:
    assert block.text.startswith("$ ")
    assert "Traceback" not in block.text
    commands = transcribed(block)
    assert commands
    for text in commands:
        run(typed(text), checkouts)


@pytest.mark.parametrize("block", CONVERSATIONS, ids=lambda block: block.place)
def test_the_spellings_of_a_conversation_say_the_same(block: Block) -> None:
    first, *others = [read_document(json.loads(text), ["0"]) for text in block.text.split("\n\n")]
    assert first
    assert others
    assert all(other == first for other in others)


@pytest.mark.parametrize("block", MIXTURES, ids=lambda block: block.place)
def test_a_mixture_can_be_read(block: Block, tmp_path: Path) -> None:
    (tmp_path / "mixture.yaml").write_text(block.text)
    assert load_mixture(str(tmp_path / "mixture.yaml"))


@pytest.mark.parametrize("block", SUITES, ids=lambda block: block.place)
def test_a_suite_can_be_read(block: Block, tmp_path: Path) -> None:
    (tmp_path / "suite.toml").write_text(block.text)
    assert load_suite(tmp_path / "suite.toml").task


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_and_paths_lead_somewhere(document: Path) -> None:
    for link in links_of(document):
        assert (document.parent / link.partition("#")[0]).exists(), link
    files = [f"/{path.relative_to(ROOT)}" for top in TOP for path in (ROOT / top).rglob("*.*")]
    for path in paths_of(document):
        is_there = list(ROOT.glob(path.rstrip("/"))) or any(file.endswith(f"/{path}") for file in files)
        assert is_there or path.rstrip("/") in MADE, path


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_keys_of_configs_exist(document: Path) -> None:
    for key in keys_of(document, list(SECTIONS)):
        assert key in KEYS | PARAMETERS | ADDED, key


def test_the_table_of_configs_is_whole() -> None:
    rows = re.findall(r"^\| (\w+\.toml) \|", (ROOT / "configs/README.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(path.name for path in (ROOT / "configs").glob("*.toml"))


def test_the_index_of_the_paper_names_what_is_in_the_code() -> None:
    """In the files that a row names, or anywhere."""
    source = {path: path.read_text() for path in (ROOT / "oneflow_dist").rglob("*.py")}
    rows = re.findall(r"^\| .* \| (.*) \|$", (ROOT / "docs/paper_to_code.md").read_text(), re.MULTILINE)
    assert len(rows) > 10
    for row in rows:
        spans = re.findall(r"`([^`]+)`", row)
        files = [span for span in spans if span.endswith(".py")]
        texts = [text for path, text in source.items() if not files or str(path).endswith(tuple(files))]
        named = [span for span in spans if not span.endswith((".py", "/")) and span not in KEYS]
        for word in re.findall(r"[A-Za-z_]\w*", " ".join(span for span in named if not span.startswith("oneflow "))):
            assert any(re.search(rf"\b{word}\b", text) for text in texts), f"{word}: {row}"
