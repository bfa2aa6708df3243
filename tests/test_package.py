"""What is published: an sdist with all that a checkout has, and a wheel that trains where nothing else is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from email import message_from_bytes
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from oneflow_dist.config import Config, write_config
from tests.environments import link, needed
from tests.launching import THREADS
from tests.messages import names

PACKAGES = {"oneflow_dist": "oneflow_dist", "oneflow_kernels": "kernels/oneflow_kernels"}
FOLDERS = ("configs", "docs", "kernels", "launch", "oneflow_dist", "tests", "tools")
FILES = ("LICENSE", "README.md", "CHANGELOG.md", "Makefile", "Dockerfile", "pyproject.toml", "requirements.lock")
LEFT_OVER = ("models/small/model.safetensors", "runs/a/metrics.jsonl", "data/x.tar", "notes.txt")
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


@dataclass(frozen=True, slots=True)
class Built:
    """A copy of the checkout, and what was made of it."""

    tree: Path
    sdist: Path
    wheel: Path

    def members(self) -> set[str]:
        """Files of the sdist."""
        with tarfile.open(self.sdist) as archive:
            return {member.name.partition("/")[2] for member in archive.getmembers()}

    def wheel_members(self) -> set[str]:
        with zipfile.ZipFile(self.wheel) as archive:
            return set(archive.namelist())

    def metadata(self) -> dict[str, list[str]]:
        with zipfile.ZipFile(self.wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
            message = message_from_bytes(archive.read(name))
        return {key: message.get_all(key, []) for key in set(message.keys())}


@dataclass(frozen=True, slots=True)
class Installed:
    """An environment with the wheel, and beside it only what the wheel asks for."""

    python: Path
    folder: Path  # empty, and outside of any checkout
    env: dict[str, str]

    def oneflow(self, *words: object, code: int = 0) -> str:
        """What the command prints, on both streams."""
        command = [str(self.python.with_name("oneflow")), *map(str, words)]
        end = subprocess.run(command, cwd=self.folder, env=self.env, capture_output=True, text=True, check=False)
        assert end.returncode == code, end.stderr
        return end.stdout + end.stderr


def call(*command: object, **options: Path) -> None:
    end = subprocess.run([*map(str, command)], capture_output=True, text=True, env=os.environ | OFFLINE, **options)  # type: ignore[call-overload]
    assert end.returncode == 0, end.stdout + end.stderr


@pytest.fixture(scope="module")
def built(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """As `python -m build`: the wheel is made of the sdist."""
    folder = tmp_path_factory.mktemp("package")
    tree, made = folder / "tree", folder / "made"
    for name in FOLDERS:
        shutil.copytree(root / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in (path for path in root.iterdir() if path.is_file()):
        shutil.copy(path, tree)
    for name in (*LEFT_OVER, "oneflow_dist/__pycache__/train.cpython-311.pyc"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text("left over")
    call(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", made, cwd=tree)
    (sdist,) = made.glob("*.tar.gz")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps")
    call(*pip, "--wheel-dir", made, sdist)
    (wheel,) = made.glob("*.whl")
    return Built(tree, sdist, wheel)


def files_in(folder: Path) -> list[Path]:
    """All but what Python has compiled."""
    return [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("installed")
    call(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    python = folder / "venv/bin/python"
    call(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", built.wheel)
    for name in ("packages", "empty"):
        (folder / name).mkdir()
    link(needed(built.metadata()["Requires-Dist"]).values(), folder / "packages")
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "ONEFLOW", "TRITON"))}
    env |= {"PYTHONPATH": str(folder / "packages"), "OMP_NUM_THREADS": THREADS}
    return Installed(python, folder / "empty", env)


def test_the_wheel_has_every_file_of_both_packages_and_nothing_else(built: Built) -> None:
    expected = {
        f"{package}/{path.relative_to(built.tree / folder)}"
        for package, folder in PACKAGES.items()
        for path in files_in(built.tree / folder)
    }
    own = {name for name in built.wheel_members() if ".dist-info/" not in name}
    assert own == expected
    assert {"oneflow_dist/py.typed", "oneflow_kernels/py.typed", "oneflow_dist/serving/page/index.html"} <= own
    assert any(name.startswith("oneflow_kernels/tuned/") for name in own)


def test_a_wheel_of_the_tree_is_that_of_the_sdist(built: Built, tmp_path: Path) -> None:
    """So a wheel that is made in a checkout lacks nothing either."""
    call(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path, cwd=built.tree)
    (wheel,) = tmp_path.glob("*.whl")
    assert Built(built.tree, built.sdist, wheel).wheel_members() == built.wheel_members()


def test_the_sdist_has_what_a_checkout_has_and_nothing_that_lies_about_in_it(built: Built) -> None:
    members = built.members()
    assert set(FILES) <= members
    for folder in FOLDERS:
        assert {str(path.relative_to(built.tree)) for path in files_in(built.tree / folder)} <= members
    assert not set(LEFT_OVER) & members
    assert not any("__pycache__" in name for name in members)


def test_what_is_installed_says_what_the_project_says(built: Built) -> None:
    project = tomllib.loads((built.tree / "pyproject.toml").read_text())["project"]
    metadata = built.metadata()
    assert metadata["Version"] == [project["version"]]
    assert metadata["License-File"] == project["license-files"]
    assert set(metadata["Provides-Extra"]) == set(project["optional-dependencies"])
    asked = [Requirement(text) for text in metadata["Requires-Dist"] if "extra ==" not in text]
    assert {own.name for own in asked} == {Requirement(text).name for text in project["dependencies"]}


def test_a_plain_install_trains_and_writes(
    installed: Installed, built: Built, make_config: Callable[..., Config]
) -> None:
    """In a folder that is no checkout, with the packages of `dependencies` and what these need alone."""
    overrides = ("train.steps=2", "sampling.every_steps=0", "sampling.steps=2", "train.compile=false")
    overrides += ("metrics.tensorboard=false",)
    config = make_config(f"run.folder={installed.folder / 'run'}", *overrides)
    (installed.folder / "tiny.toml").write_text(write_config(config))
    version = built.metadata()["Version"][0]
    assert installed.oneflow("--version") == f"oneflow_dist {version}\n"
    said = installed.oneflow("doctor", "tiny.toml").splitlines()
    assert any(line.startswith("missing") and "extra track" in line and "tensorboard" in line for line in said)
    installed.oneflow("train", "tiny.toml")
    assert len((installed.folder / "run/metrics.jsonl").read_text().splitlines()) == 2
    installed.oneflow("sample", "run", "written")
    assert list((installed.folder / "written").iterdir())


def test_an_editable_install_finds_both_packages_where_they_lie(built: Built, tmp_path: Path) -> None:
    call(sys.executable, "-m", "venv", "--without-pip", tmp_path)
    pip = (sys.executable, "-m", "pip", "--python", tmp_path / "bin/python", "install", "--quiet", "--no-deps")
    # Without isolation the environment itself has to have what builds it, and what that needs.
    (tmp_path / "packages").mkdir()
    link(needed(["hatchling"]).values(), tmp_path / "packages")
    env = os.environ | OFFLINE | {"PYTHONPATH": str(tmp_path / "packages")}
    words = [*map(str, pip), "--no-build-isolation", "--editable", str(built.tree)]
    end = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert end.returncode == 0, end.stderr
    script = "import oneflow_dist, oneflow_kernels; print(oneflow_dist.__path__[0], oneflow_kernels.__path__[0])"
    asked = [tmp_path / "bin/python", "-P", "-c", script]
    bare = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    found = subprocess.run(asked, cwd=tmp_path, env=bare, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [str(built.tree / folder) for folder in PACKAGES.values()]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("train", "tiny.toml", "metrics.tensorboard=true"), ("metrics.tensorboard", "tensorboard", "track")),
        (
            ("train", "tiny.toml", "metrics.tensorboard=false", "metrics.wandb=offline"),
            ("metrics.wandb", "wandb", "track"),
        ),
        (("serve", "run"), ("oneflow serve", "uvicorn", "serve")),
        (("curves", "run", "curves.png"), ("oneflow curves", "matplotlib", "evaluate")),
        (("benchmark", "flops"), ("oneflow benchmark", "tools/benchmark/__main__.py")),
    ],
    ids=lambda value: value[0],
)
def test_what_a_plain_install_cannot_do_is_one_line_with_the_extra(
    words: tuple[str, ...], named: tuple[str, ...], installed: Installed, config: Config
) -> None:
    (installed.folder / "tiny.toml").write_text(write_config(config))
    assert names(installed.oneflow(*words, code=2), *named)


def test_the_environment_of_these_tests_lacks_what_only_extras_bring(installed: Installed) -> None:
    """Else the tests above would find nothing."""
    absent = ("tensorboard", "wandb", "matplotlib", "sklearn", "webdataset", "uvicorn", "diffusers", "transformers")
    script = "import importlib.util as u, sys; print(*[name for name in sys.argv[1:] if u.find_spec(name)])"
    command = [installed.python, "-c", script, *absent]
    end = subprocess.run(command, env=installed.env, cwd=installed.folder, capture_output=True, text=True, check=True)
    assert end.stdout.split() == []
