from __future__ import annotations

from pathlib import Path

import pytest

from oneflow_dist.data.mixture import Source, load_mixture

ROOT = Path(__file__).parents[2]


def write(folder: Path, text: str) -> Path:
    path = folder / "mixture.yaml"
    path.write_text(text)
    return path


def test_a_mixture_is_read_in_order(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "sources:\n"
        "  b: {shards: 'b-{00..01}.tar', weight: 2, tasks: {interleaved: 1, both: 0.5}, prompt: 'count up:'}\n"
        "  a: {shards: a.tar, weight: 0.5, tasks: {text_only: 1}}\n",
    )
    assert load_mixture(str(path)) == (
        Source(
            name="b",
            shards="b-{00..01}.tar",
            weight=2.0,
            tasks={"interleaved": 1.0, "both": 0.5},
            prompt="count up:",
        ),
        Source(name="a", shards="a.tar", weight=0.5, tasks={"text_only": 1.0}, prompt=""),
    )


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "data").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_mixtures_of_the_project_can_be_read(path: Path) -> None:
    assert len(load_mixture(str(path))) >= 1


# What is refused, and how it is said.


def refusal(path: Path) -> str:
    with pytest.raises(ValueError) as error:
        load_mixture(str(path))
    return str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.yaml") == f"{tmp_path}/none.yaml: no such mixture file; set data.mixture"


def test_what_is_no_yaml_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "sources: [unclosed\n")
    message = refusal(path)
    assert message.startswith(f"{path}: not valid YAML: ")
    assert "\n" not in message


@pytest.mark.parametrize(
    "text",
    ["", "a\n", "sources:\n", "sources: {}\n", "source: {a: 1}\n", "sources: {a: 1}\nmore: 1\n", "sources: [a]\n"],
)
def test_a_file_without_a_table_of_sources_is_named(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    assert refusal(path) == f"{path}: expected one key, `sources`, with a table of sources"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("3", "expected a table with shards, weight, tasks, prompt"),
        (
            "{shards: a.tar, weight: 1, tasks: {both: 1}, wait: 2}",
            "unknown key 'wait'; known keys: shards, weight, tasks, prompt",
        ),
        ("{weight: 1, tasks: {both: 1}}", "shards is missing"),
        ("{shards: a.tar, tasks: {both: 1}}", "weight is missing"),
        ("{shards: a.tar, weight: 1}", "tasks is missing"),
        (
            "{shards: a.tar, weight: 1, tasks: {paint: 1}}",
            "unknown task 'paint'; known tasks: text_to_image, image_to_text, both, interleaved, text_only, image_only",
        ),
        ("{shards: a.tar, weight: 0, tasks: {both: 1}}", "weight is 0; weights are positive numbers"),
        ("{shards: a.tar, weight: -1, tasks: {both: 1}}", "weight is -1; weights are positive numbers"),
        ("{shards: a.tar, weight: much, tasks: {both: 1}}", "weight is 'much'; weights are positive numbers"),
        ("{shards: a.tar, weight: .nan, tasks: {both: 1}}", "weight is nan; weights are positive numbers"),
        ("{shards: a.tar, weight: 1, tasks: {both: 0}}", "both is 0; weights are positive numbers"),
        ("{shards: a.tar, weight: 1, tasks: {both: null}}", "both is None; weights are positive numbers"),
    ],
)
def test_a_mistake_in_a_source_is_named(tmp_path: Path, entry: str, message: str) -> None:
    path = write(tmp_path, f"sources:\n  pets: {entry}\n")
    assert refusal(path) == f"{path}, source pets: {message}"


@pytest.mark.parametrize("tasks", ["{}", "null", "both", "[both]", "3"])
def test_tasks_that_are_no_table_are_named(tmp_path: Path, tasks: str) -> None:
    path = write(tmp_path, f"sources:\n  pets: {{shards: a.tar, weight: 1, tasks: {tasks}}}\n")
    message = refusal(path)
    assert message.startswith(f"{path}, source pets: ")
    assert "tasks" in message
