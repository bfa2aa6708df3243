from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest

from tests.evaluation.interleaved.made_up import Said, Shown, write_answers
from tests.launching import ENVIRONMENT, ROOT, TIMEOUT, Finished, only_error
from tests.messages import names
from tools.interleaved.score import score_all

NEEDED = ("numpy", "PIL", "jaxtyping", "wadler_lindig")  # the last is what jaxtyping needs itself
PRINT_MODULES = """
import runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
print(*{name.partition(".")[0] for name in sys.modules}, file=sys.stderr)
"""


@pytest.fixture
def released(made: Path, tmp_path: Path) -> Path:
    """The folder as another project has it: nothing of ours beside it."""
    return Path(shutil.copytree(made / "benchmark", tmp_path / "elsewhere" / "benchmark"))


@pytest.fixture
def answers(released: Path, tmp_path: Path) -> Path:
    """The first story is told, the second one is empty; the first figure is painted as itself."""
    folder = tmp_path / "answers"
    items = [json.loads(line) for line in (released / "stories/items.jsonl").read_text().splitlines()]
    label = items[0]["scenes"][0]
    documents: dict[str, tuple[Said | Shown, ...]] = {
        items[0]["key"]: (Said(f"first {label}", (1, 2)), Shown(label, 1, 3)),
        items[1]["key"]: (),
    }
    write_answers(folder / "stories", documents, steps=3)
    item = json.loads((released / "figures/items.jsonl").read_text().splitlines()[0])
    (folder / "figures/pictures").mkdir(parents=True)
    shutil.copy(released / "figures" / item["pictures"][0], folder / "figures/pictures/0.jpg")
    line = {"key": item["key"], "number": 0, "parts": [{"image": "0.jpg"}]}
    (folder / "figures/answers.jsonl").write_text(json.dumps(line) + "\n")
    return folder


def run_alone(*arguments: str | Path, path: str = "", options: tuple[str, ...] = ()) -> Finished:
    """A program of the folder, from nowhere near this repository."""
    env = {key: value for key, value in ENVIRONMENT.items() if key != "PYTHONPATH"} | (
        {"PYTHONPATH": path} if path else {}
    )
    command = [sys.executable, *options, *map(str, arguments)]
    end = subprocess.run(command, cwd="/", env=env, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    return Finished(end.returncode, end.stdout, end.stderr)


def test_the_folder_scores_as_the_library_does(released: Path, answers: Path) -> None:
    end = run_alone(released / "score.py", released, answers)
    assert (end.code, end.stderr) == (0, "")
    report = json.loads(end.stdout)
    assert report == score_all(released, answers)
    assert [*report] == ["stories", "figures"]
    assert report["figures"]["recall_1"]["value"] == 1.0
    assert (report["stories"]["documents"], report["stories"]["items_asked"]) == (2, 6)


def test_the_folder_needs_three_packages_and_what_they_need(released: Path, answers: Path, tmp_path: Path) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    for found in map(Path, site.getsitepackages()):
        for pattern in (*NEEDED, "numpy.libs", "pillow.libs", "jaxtyping-*.dist-info"):
            for path in found.glob(pattern):
                (packages / path.name).symlink_to(path)
    end = run_alone("-c", PRINT_MODULES, released / "score.py", released, answers, path=str(packages), options=("-S",))
    assert end.code == 0, end.stderr
    loaded = set(end.stderr.split())
    assert loaded >= {"numpy", "PIL", "jaxtyping", "oneflow_dist"}
    assert not loaded & {"torch", "scipy", "sklearn", "tools", "tests"}
    assert json.loads(end.stdout) == score_all(released, answers)


def test_the_folder_runs_its_own_scorer_even_where_this_repository_can_be_imported(
    released: Path, answers: Path
) -> None:
    own = released / "oneflow_dist/evaluation/interleaved/parts.py"
    changed = own.read_text().replace('"documents": len(found)', '"documents": 7000')
    assert changed != own.read_text()
    own.write_text(changed)
    end = run_alone(released / "score.py", released, answers, path=os.fspath(ROOT))
    assert json.loads(end.stdout)["stories"]["documents"] == 7000


def test_the_folder_says_what_is_in_it(released: Path) -> None:
    text = (released / "README.md").read_text()
    for word in ("CC BY 4.0", "Apache-2.0", "Access for free at https://openstax.org", "Optical Recognition"):
        assert word in text


def test_every_figure_is_explained(released: Path, answers: Path) -> None:
    text = (released / "README.md").read_text()
    named = {name for part in score_all(released, answers).values() for name in part}
    named |= {"matching", "agreement_late", "reciprocal_rank"}
    assert {name for name in named if f"`{name}`" not in text} == set()


def test_without_answers_one_line_says_what_is_missing(released: Path, tmp_path: Path) -> None:
    end = run_alone(released / "score.py", released, tmp_path / "none")
    assert end.code == 2
    assert names(only_error(end), tmp_path / "none", "counting", "stories", "figures")


@pytest.mark.parametrize("damage", ["line", "picture", "benchmark"])
def test_what_is_damaged_is_told_in_one_line(damage: str, released: Path, answers: Path) -> None:
    named = {
        "line": answers / "stories/000000.jsonl",
        "picture": answers / "figures/pictures/0.jpg",
        "benchmark": released / "stories/items.jsonl",
    }[damage]
    if damage == "line":
        named.write_text(named.read_text() + "{}\n")
    else:
        named.unlink()
    end = run_alone(released / "score.py", released, answers)
    assert (end.code, end.stdout) == (2, "")
    assert names(only_error(end), named)
