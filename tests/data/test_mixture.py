from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneflow_dist.data.decoding import Reading
from oneflow_dist.data.mixture import Filter, Source, load_mixture
from oneflow_dist.data.samples import TASKS
from oneflow_dist.modality import GIVEN
from tests.messages import Message

ROOT = Path(__file__).parents[2]


def write(folder: Path, text: str) -> Path:
    path = folder / "mixture.yaml"
    path.write_text(text)
    return path


def source_with(folder: Path, lines: str) -> Source:
    """A source with further entries."""
    (source,) = load_mixture(
        str(write(folder, f"sources:\n  pets:\n    shards: a.tar\n    weight: 1\n    tasks: {{both: 1}}\n{lines}"))
    )
    return source


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
            index=None,
            prompt="count up:",
            captions={"txt": 1.0},
            reading=Reading(question="question", answer="answer"),
            filters=(),
            max_images=None,
        ),
        Source(name="a", shards="a.tar", weight=0.5, tasks={"text_only": 1.0}, captions={"txt": 1.0}),
    )


def test_everything_that_a_source_can_say_is_read(tmp_path: Path) -> None:
    source = source_with(
        tmp_path,
        "    index: data/indexes\n"
        "    prompt: 'look: '\n"
        "    caption: {txt: 1, short: 2.5}\n"
        "    question: ask\n"
        "    answer: reply\n"
        "    filters:\n"
        "      aesthetic: {min: 4.5}\n"
        "      width: {min: 64, max: 4096}\n"
        "      license: {one_of: [cc0, cc-by]}\n"
        "    max_images: 0\n"
        "    given: {instruct: both, image_to_text: features}\n",
    )
    assert source == Source(
        name="pets",
        shards="a.tar",
        weight=1.0,
        tasks={"both": 1.0},
        index="data/indexes",
        prompt="look: ",
        captions={"txt": 1.0, "short": 2.5},
        reading=Reading(question="ask", answer="reply"),
        filters=(
            Filter(field="aesthetic", min=4.5),
            Filter(field="width", min=64.0, max=4096.0),
            Filter(field="license", one_of=("cc0", "cc-by")),
        ),
        max_images=0,
        given={"instruct": "both", "image_to_text": "features"},
    )


@pytest.mark.parametrize("given_as", GIVEN)
def test_everything_that_can_stand_for_a_given_picture_can_be_asked_for(tmp_path: Path, given_as: str) -> None:
    assert source_with(tmp_path, f"    given: {{both: {given_as}}}\n").given == {"both": given_as}


def test_one_caption_may_be_named_alone(tmp_path: Path) -> None:
    assert source_with(tmp_path, "    caption: short\n").captions == {"short": 1.0}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_can_be_asked_for(tmp_path: Path, task: str) -> None:
    path = write(tmp_path, f"sources: {{pets: {{shards: a.tar, weight: 1, tasks: {{{task}: 1}}}}}}\n")
    assert load_mixture(str(path))[0].tasks == {task: 1.0}


def test_names_that_are_numbers_are_text(tmp_path: Path) -> None:
    path = write(tmp_path, "sources: {2024: {shards: a.tar, weight: 1, tasks: {both: 1}}}\n")
    assert load_mixture(str(path))[0].name == "2024"


@pytest.mark.parametrize("name", ["no", "010", "1e5", "2024-01-01", "1:30", "null", "true", "~"])
def test_a_name_is_text_as_it_is_written(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, f"sources: {{{name}: {{shards: a.tar, weight: 1, tasks: {{both: 1}}}}}}\n")
    assert load_mixture(str(path))[0].name == name


@pytest.mark.parametrize("text", ["no", "Yes", "on", "2024-01-01", "2024-01-01 10:00:00", "1:30", "1_000", "0x10", "="])
def test_what_is_text_in_yaml_12_is_text(tmp_path: Path, text: str) -> None:
    source = source_with(tmp_path, f"    prompt: {text}\n    filters: {{x: {{one_of: [{text}]}}}}\n")
    assert (source.prompt, source.filters[0].one_of) == (text, (text,))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("-3", -3),
        ("1e5", 1e5),
        ("1.5E-3", 1.5e-3),
        (".5", 0.5),
        ("true", True),
        ("False", False),
        ("~", None),
    ],
)
def test_numbers_truth_and_nothing_are_those_of_yaml_12(tmp_path: Path, text: str, value: Any) -> None:
    (rule,) = source_with(tmp_path, f"    filters: {{x: {{one_of: [{text}]}}}}\n").filters
    assert (rule.one_of, type(rule.one_of[0]) if rule.one_of else None) == ((value,), type(value))


def test_a_mixture_may_hold_any_letters(tmp_path: Path) -> None:
    assert source_with(tmp_path, "    prompt: 'zähle 数える:'\n").prompt == "zähle 数える:"


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "data").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_mixtures_of_the_project_can_be_read(path: Path) -> None:
    assert len(load_mixture(str(path))) >= 1


# Filters.


@pytest.mark.parametrize(
    ("rule", "value", "passes"),
    [
        (Filter(field="x", min=2.0), 2, True),
        (Filter(field="x", min=2.0), 1.999, False),
        (Filter(field="x", max=2.0), 2.0, True),
        (Filter(field="x", max=2.0), 3, False),
        (Filter(field="x", min=1.0, max=2.0), 1.5, True),
        (Filter(field="x", min=1.0), math.inf, True),
        (Filter(field="x", min=1.0), math.nan, False),
        (Filter(field="x", min=1.0), "2", False),
        (Filter(field="x", min=1.0), None, False),
        (Filter(field="x", min=1.0), [2], False),
        (Filter(field="x", min=1.0), True, False),
        (Filter(field="x", one_of=("a", "b")), "a", True),
        (Filter(field="x", one_of=("a", "b")), "c", False),
        (Filter(field="x", one_of=("a", "b")), ["a"], False),
        (Filter(field="x", one_of=(1, 2)), 2, True),
        (Filter(field="x", one_of=(None,)), None, True),
        (Filter(field="x", one_of=()), None, False),
        (Filter(field="x", one_of=(0, 1)), False, False),
        (Filter(field="x", one_of=(False,)), 0, False),
        (Filter(field="x", one_of=(False,)), False, True),
        (Filter(field="x", one_of=(1,)), "1", False),
        (Filter(field="x", one_of=("1",)), 1, False),
        (Filter(field="x", one_of=(1,)), 1.0, True),
        (Filter(field="x", one_of=(1.5, 2.0)), 2, True),
    ],
)
def test_a_filter_compares_a_field(rule: Filter, value: Any, passes: bool) -> None:
    assert rule.passes({"x": value, "y": 0}) == passes


@pytest.mark.parametrize(
    "rule", [Filter(field="x"), Filter(field="x", min=-1.0), Filter(field="x", one_of=(None, 1))], ids=str
)
def test_a_sample_without_the_field_does_not_pass(rule: Filter) -> None:
    assert not rule.passes({"y": 0})
    assert not rule.passes({})


@given(st.floats(allow_nan=False), st.floats(allow_nan=False), st.floats(allow_nan=False) | st.integers())
def test_a_number_passes_if_it_lies_between(low: float, high: float, value: float) -> None:
    assert Filter(field="x", min=low, max=high).passes({"x": value}) == (low <= value <= high)


# What is refused, and how it is said.


def refusal(path: Path) -> str:
    with pytest.raises(ValueError) as error:
        load_mixture(str(path))
    return Message(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.yaml") == f"{tmp_path}/none.yaml: no such mixture file; set data.mixture"


@pytest.mark.parametrize(
    ("text", "line"),
    [("sources: [unclosed\n", "line 2"), ("sources:\n  a: {b: 1\n  c: 2\n", "line 3"), ("a: b: c\n", "line 1")],
)
def test_what_is_no_yaml_is_named_with_its_line(tmp_path: Path, text: str, line: str) -> None:
    path = write(tmp_path, text)
    message = refusal(path)
    assert message.startswith(f"{path}: not valid YAML: ")
    assert line in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "content", [b"sources: \xff\n", b"\x00\x01", b"sources: !!python/object/apply:os.getcwd []\n", b"a: !!int b\n"]
)
def test_what_is_no_plain_yaml_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mixture.yaml").write_bytes(content)
    assert refusal(tmp_path / "mixture.yaml").startswith(f"{tmp_path}/mixture.yaml: not valid YAML: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected one key, `sources`, with a table of sources"),
        ("a\n", "line 1: expected one key, `sources`, with a table of sources"),
        ("[sources]\n", "line 1: expected one key, `sources`, with a table of sources"),
        ("# nothing\nsource: {a: 1}\n", "line 2: unknown key source; did you mean sources?"),
        ("sources: {a: 1}\nmore: 1\n", "line 2: unknown key more; known keys: sources"),
        ("{}\n", "line 1: sources is missing; add it"),
        ("[a]: 1\n", "line 1: a list or table as a key; keys are names"),
        ("\nsources:\n", "line 2: sources: None is not a table with entries"),
        ("sources: {}\n", "line 1: sources: {} is not a table with entries"),
        ("sources: [a]\n", "line 1: sources: ['a'] is not a table with entries"),
        ("sources:\n  a:\n  b: 3\n", "line 2: a: None is not a table with entries"),
        ("sources:\n  a: 3\n", "line 2: a: 3 is not a table with entries"),
    ],
)
def test_a_file_without_a_table_of_sources_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    assert refusal(path) == f"{path}, {message}"


KNOWN = "shards, weight, tasks, index, prompt, caption, question, answer, filters, max_images, given"
MISTAKES = {
    "unknown key": ("    wait: 2\n    zzz: 1\n", "line 6: unknown key wait; did you mean weight?"),
    "unknown key unlike any": ("\n    zzz: 1\n", f"line 7: unknown key zzz; known keys: {KNOWN}"),
    "key twice": ("    weight: 2\n", "line 6: weight stands here a second time, first in line 4; remove one"),
    "prompt": ("    prompt: 3\n", "line 6: prompt: 3 is not text; put it in quotes"),
    "prompt is nothing": ("    prompt:\n", "line 6: prompt: None is not text; put it in quotes"),
    "index": ("    index: [a]\n", "line 6: index: ['a'] is not text; put it in quotes"),
    "question": ("    question: true\n", "line 6: question: True is not text; put it in quotes"),
    "answer": ("    answer: 1.5\n", "line 6: answer: 1.5 is not text; put it in quotes"),
    "max_images": ("    max_images: -1\n", "line 6: max_images: -1 is not a whole number from 0 on"),
    "max_images part": ("    max_images: 1.5\n", "line 6: max_images: 1.5 is not a whole number from 0 on"),
    "max_images yes": ("    max_images: true\n", "line 6: max_images: True is not a whole number from 0 on"),
    "max_images none": ("    max_images:\n", "line 6: max_images: None is not a whole number from 0 on"),
    "given": ("    given: features\n", "line 6: given: 'features' is not a table with entries"),
    "given of no task": (
        "    given: {both: latents, boht: features}\n",
        "line 6: unknown key boht; did you mean both?",
    ),
    "given what": (
        "    given:\n      instruct: both\n      both: feature\n",
        "line 8: both: 'feature' is not one of latents, features, both",
    ),
    "given list": ("    given: {both: [a]}\n", "line 6: both: ['a'] is not one of latents, features, both"),
    "caption": ("    caption: 3\n", "line 6: caption: 3 is not a table with entries"),
    "no captions": ("    caption: {}\n", "line 6: caption: {} is not a table with entries"),
    "caption weight": (
        "    caption:\n      a: 1\n      b: 0\n",
        "line 8: b: 0 is not a weight; weights are positive numbers",
    ),
    "filters": ("    filters: 3\n", "line 6: filters: 3 is not a table with entries"),
    "no filters": ("    filters: {}\n", "line 6: filters: {} is not a table with entries"),
    "filter": ("    filters:\n      x: 3\n", "line 7: x: 3 is not a table with entries"),
    "filter key": (
        "    filters:\n      x: {mim: 3}\n",
        "line 7: unknown key mim; did you mean min?",
    ),
    "filter min": (
        "    filters:\n      x:\n        min: low\n",
        "line 8: x: min is 'low', not a number; write one, as 0.5",
    ),
    "filter max": ("    filters:\n      x: {max: true}\n", "line 7: x: max is True, not a number; write one, as 0.5"),
    "filter both": (
        "    filters:\n      x: {max: 3, one_of: [a]}\n",
        "line 7: x: give either min and max, or one_of",
    ),
    "filter list": (
        "    filters:\n      x: {one_of: a}\n",
        "line 7: x: one_of is 'a', not a list; write one, as [a, b]",
    ),
    "filter twice": (
        "    filters:\n      x: {min: 1}\n      y: {min: 1}\n      x: {max: 1}\n",
        "line 9: x stands here a second time, first in line 7; remove one",
    ),
}


@pytest.mark.parametrize(("lines", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_a_source_is_named_with_its_line(tmp_path: Path, lines: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        source_with(tmp_path, lines)
    assert Message(error.value) == f"{tmp_path}/mixture.yaml, {message}"


TASK_NAMES = "text_to_image, image_to_text, both, interleaved, text_only, image_only, instruct"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{weight: 1, tasks: {both: 1}}", "shards is missing"),
        ("{shards: a.tar, tasks: {both: 1}}", "weight is missing"),
        ("{shards: a.tar, weight: 1}", "tasks is missing"),
        ("{shards: 3, weight: 1, tasks: {both: 1}}", "shards: 3 is not text; put it in quotes"),
        ("{shards: a.tar, weight: 1, tasks: {paint: 1}}", f"unknown key paint; known keys: {TASK_NAMES}"),
        ("{shards: a.tar, weight: 1, tasks: {bath: 1}}", "unknown key bath; did you mean both?"),
        ("{shards: a.tar, weight: 1, tasks: {both: 1, both: 2}}", "both stands here a second time, first in line 2; "),
        *(
            (f"{{shards: a.tar, weight: {value}, tasks: {{both: 1}}}}", f"weight: {shown} is not a weight; ")
            for value, shown in (
                *(("0", "0"), ("-1", "-1"), ("much", "'much'"), (".nan", "nan"), (".inf", "inf")),
                *(("true", "True"), ("null", "None"), ("[1]", "[1]"), ("1:30", "'1:30'")),
            )
        ),
        ("{shards: a.tar, weight: 1, tasks: {both: 0}}", "both: 0 is not a weight; weights are positive numbers"),
        ("{shards: a.tar, weight: 1, tasks: {both: null}}", "both: None is not a weight; weights are positive numbers"),
        *(
            (f"{{shards: a.tar, weight: 1, tasks: {value}}}", f"tasks: {shown} is not a table with entries")
            for value, shown in (("{}", "{}"), ("null", "None"), ("both", "'both'"), ("[both]", "['both']"), ("3", "3"))
        ),
    ],
)
def test_what_a_source_must_say_is_asked_for(tmp_path: Path, entry: str, message: str) -> None:
    path = write(tmp_path, f"sources:\n  pets: {entry}\n")
    assert refusal(path).startswith(f"{path}, line 2: {message}")


def test_a_source_that_comes_twice_is_named(tmp_path: Path) -> None:
    entry = "{shards: a.tar, weight: 1, tasks: {both: 1}}"
    path = write(tmp_path, f"sources:\n  pets: {entry}\n  cats: {entry}\n  pets: {entry}\n")
    assert refusal(path) == f"{path}, line 4: pets stands here a second time, first in line 2; remove one"


@given(st.text("{}[]:,-# \n\tab1'\"&*!|>%@`sources", max_size=60))
def test_any_text_is_read_or_refused_with_a_reason(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = write(tmp_path_factory.getbasetemp(), text)
    message = str(path)
    try:
        load_mixture(str(path))
    except ValueError as error:
        message = str(error)
    assert message.startswith(str(path))
