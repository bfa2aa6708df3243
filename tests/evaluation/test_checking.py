from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from oneflow_dist.evaluation.checking import OURS, check_suite_files
from oneflow_dist.evaluation.suite import Suite, SuiteConfig, TaskConfig, load_suite
from tests.evaluation.benchmarks import IDS, SUITES, file_name, make_benchmarks, suite_at
from tests.messages import names

PAPER = ("paper_table2", "paper_table3")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    make_benchmarks(tmp_path)
    return tmp_path


def made(root: Path, name: str) -> Suite:
    """A suite whose weights come in packages."""
    return replace(suite_at(name, root), suite=SuiteConfig())


def suite_of(**keys: Any) -> Suite:
    return Suite(suite=SuiteConfig(), task={"own": TaskConfig(**{"scores": ("exact",), "prompt": "?", **keys})})


@pytest.mark.parametrize("name", PAPER)
def test_nothing_is_missing_where_everything_is(root: Path, name: str) -> None:
    assert check_suite_files(made(root, name)) == []


@pytest.mark.parametrize("name", PAPER)
def test_all_that_the_papers_suites_name_can_be_had_somewhere(name: str) -> None:
    suite = load_suite(SUITES / f"{name}.toml")
    lines = check_suite_files(suite)
    assert {line.split(".")[1] for line in lines if line.startswith("task.")} == {*suite.task}
    items = {
        task for task, config in suite.task.items() if config.source == "items"
    }  # which the suite says how to make
    assert all(("https://" in line) != (line.split(".")[1] in items) for line in lines)


@pytest.mark.parametrize("task", ["coco_pictures", "dpg", "geneval", "wise"])
def test_missing_annotations_are_told_with_their_place(root: Path, task: str) -> None:
    suite = made(root, "paper_table2")
    path = Path(suite.task[task].path.split(",")[0])
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    (line,) = check_suite_files(suite)
    assert names(line, f"task.{task}.path", path, "https")


def test_each_missing_file_of_several_is_a_line(root: Path) -> None:
    suite = made(root, "paper_table3")
    paths = suite.task["vqav2"].path.split(",")
    for path in paths:
        Path(path).unlink()
    lines = check_suite_files(suite)
    assert [names(line, "task.vqav2.path", path) for line, path in zip(lines, paths, strict=True)] == [True, True]


def test_missing_pictures_are_counted_once_each_and_three_named(root: Path) -> None:
    for image_id in IDS[:4]:
        (root / "coco/val2014" / file_name(image_id)).unlink()
    shown = [file_name(image_id) for image_id in IDS[:3]]
    lines = check_suite_files(made(root, "paper_table3"))
    assert len(lines) == 5  # of VQAv2, OK-VQA and thrice POPE
    assert all(names(line, "pictures", 4, 12, *shown, "val2014.zip") for line in lines)
    assert not any(file_name(IDS[3]) in line for line in lines)


def test_pictures_that_a_task_does_not_ask_for_need_not_be_there(root: Path) -> None:
    (root / "coco/val2014" / file_name(IDS[1])).unlink()  # of another split than the test's
    suite = made(root, "paper_table2")
    assert [line.partition(":")[0] for line in check_suite_files(suite)] == ["task.coco_pictures.pictures"]
    fewer = replace(suite.task["coco_pictures"], count=1)
    assert check_suite_files(replace(suite, task={"coco_pictures": fewer})) == []


def test_a_missing_folder_of_pictures_is_one_line(root: Path) -> None:
    shutil.rmtree(root / "coco/val2014")
    suite = made(root, "paper_table2")
    (line,) = check_suite_files(replace(suite, task={"coco_pictures": suite.task["coco_pictures"]}))
    assert names(line, "task.coco_pictures.pictures", root / "coco/val2014", "val2014.zip")


def test_damaged_annotations_are_told_and_the_rest_is_looked_at(root: Path) -> None:
    (root / "pope/coco_pope_random.json").write_text('{"question_id": 1', encoding="utf-8")
    (root / "geneval/evaluation_metadata.jsonl").write_text("{}\n", encoding="utf-8")
    (line,) = check_suite_files(made(root, "paper_table3"))
    assert names(line, "task.pope_random.path", "coco_pope_random.json", 1)
    (line,) = check_suite_files(made(root, "paper_table2"))
    assert names(line, "task.geneval.path", "evaluation_metadata.jsonl")


def test_items_are_checked_with_the_pictures_beside_them(root: Path) -> None:
    (root / f"gqa/images/{IDS[0]}.png").unlink()
    (root / "vizwiz/val.jsonl").unlink()
    with (root / "textvqa/val.jsonl").open("a", encoding="utf-8") as file:
        file.write("[]\n")
    gqa, vizwiz, textvqa = check_suite_files(made(root, "paper_table3"))
    assert names(gqa, "task.gqa.pictures", 1, 3, root / "gqa", f"{IDS[0]}.png")
    assert names(vizwiz, "task.vizwiz.path", root / "vizwiz/val.jsonl")
    assert names(textvqa, "task.textvqa.path", root / "textvqa/val.jsonl", 4)


@pytest.mark.parametrize("key", ["labelled", "objects", "trained_on"])
def test_what_scores_compare_with_is_looked_for(root: Path, key: str) -> None:
    suite = suite_of(source="geneval", path=str(root / "geneval/evaluation_metadata.jsonl"), **{key: str(root / "no")})
    (line,) = check_suite_files(suite)
    assert names(line, f"task.own.{key}", root / "no")


@pytest.mark.parametrize("name", ["a-{0..1}.tar", "a-*.tar"])
def test_missing_shards_are_told(tmp_path: Path, name: str) -> None:
    suite = suite_of(source="shards", path=str(tmp_path / name))
    assert [line.partition(": ")[0] for line in check_suite_files(suite)] in (["task.own.path"], ["task.own.path"] * 2)
    for number in range(2):
        (tmp_path / f"a-{number}.tar").touch()
    assert check_suite_files(suite) == []


def test_shards_elsewhere_are_not_looked_for() -> None:
    assert check_suite_files(suite_of(source="shards", path="https://example.org/a-{0..1}.tar")) == []


def test_prompts_of_a_suite_need_no_file() -> None:
    assert check_suite_files(suite_of(source="prompts", prompts=("a cat<|image|>",), prompt="")) == []


def test_missing_weights_are_told(root: Path) -> None:
    suite = suite_at("paper_table2", root)
    features, aligner = check_suite_files(suite)
    assert names(features, "suite.features", suite.suite.features, "torch-fidelity")
    assert names(aligner, "suite.aligner", f"{suite.suite.aligner}/model.safetensors", "https")
    Path(suite.suite.features).touch()
    Path(suite.suite.aligner).mkdir()
    (Path(suite.suite.aligner) / "model.safetensors").touch()
    assert check_suite_files(suite) == []
    assert OURS in check_suite_files(replace(suite, suite=SuiteConfig(features=str(root / "siglip"))))[0]
