from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass
from typing import Any

import pytest

from oneflow_dist.toml import (
    Positive,
    Share,
    apply_override,
    check_range,
    field_ranges,
    ranges_of,
    read_tables,
    write_tables,
)
from tests.messages import naming


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    size: Positive
    sides: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    name: str
    part: Share = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class All:
    own: Own
    kind: dict[str, Kind]


def read(text: str, *overrides: str) -> Any:
    table = tomllib.loads(text)
    for override in overrides:
        apply_override(table, override)
    return read_tables(All, table)


@pytest.mark.parametrize("names", [[], ["a"], ["b", "a"]])
def test_tables_by_name_read_back_equal_and_in_their_order(names: list[str]) -> None:
    tables = All(own=Own(name='x "y"'), kind={name: Kind(size=i + 1, sides=(2,) * i) for i, name in enumerate(names)})
    again = read(write_tables(tables))
    assert again == tables
    assert list(again.kind) == names
    assert write_tables(tables).count("[kind.") == len(names)


def test_an_override_reaches_into_a_table_by_name_or_makes_it() -> None:
    text = "[own]\nname = 'x'\n[kind.a]\nsize = 1\n"
    found = read(text, "kind.a.sides=[2, 3]", "kind.b.size = 7", "own.part=1")
    assert found == All(own=Own(name="x", part=1.0), kind={"a": Kind(size=1, sides=(2, 3)), "b": Kind(size=7)})


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("kind.b.sides=[1]", ("kind.b.size",)),
        ("kind.a.sise=1", ("kind.a.sise", "kind.a.size")),
        ("kind.a.size.x=1", ("kind.a.size", 1)),
        ("kind.a=1", ("kind.a", 1)),
        ("own.name.x=1", ("own.name", "'x'")),
        ("kind=1", ("'kind=1'", "section.key=value")),
        (".a=1", ("'.a=1'", "section.key=value")),
    ],
)
def test_what_is_wrong_inside_a_table_by_name_is_named_by_its_path(override: str, named: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match=naming(*named)):
        read("[own]\nname = 'x'\n[kind.a]\nsize = 1\n", override)


def test_ranges_are_those_of_plain_tables_and_of_one_of_those_by_name() -> None:
    assert ranges_of(All) == {"own": {"part": "[0, 1]"}}
    assert field_ranges(Kind) == {"size": "[1, inf)"}


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("[1, inf)", [1, 2, 10**30], [0, -1, math.inf]),
        ("(0, inf)", [1e-300, 5], [0, -0.0, -1, math.inf]),
        ("(0, inf]", [1e-300, math.inf], [0, -math.inf]),
        ("(-inf, inf)", [-1e300, 0, 1e300], [math.inf, -math.inf]),
        ("[0, 1]", [0, 0.5, 1], [-1e-300, 1.0000001]),
        ("[0, 1)", [0, 0.9999999], [1, -1]),
        ("[0, 2^63)", [0, 2**63 - 1], [2**63, -1]),
        ("[-1, -1] or [1, inf)", [-1, 1, 64], [0, -2, math.inf]),
    ],
)
def test_an_interval_has_the_ends_that_its_brackets_say(
    interval: str, inside: list[float], outside: list[float]
) -> None:
    for value in inside:
        check_range("x", value, interval)
    for value in [*outside, math.nan]:
        with pytest.raises(ValueError, match=naming("a.b", value, interval)):
            check_range("a.b", value, interval)


@dataclass(frozen=True)
class Weighted:
    weights: dict[str, float]
    size: int = 3


@dataclass(frozen=True)
class WithNumbers:
    part: Weighted


@pytest.mark.parametrize(
    "text", ["[part]\nweights = { b = 2.5, a = -1 }\n", "[part.weights]\nb = 2.5\na = -1\n", "[part]\nweights = {}"]
)
def test_a_table_of_numbers_by_name_reads_back_equal_and_in_its_order(text: str) -> None:
    found = read_tables(WithNumbers, tomllib.loads(text))
    assert list(found.part.weights.items()) == ([] if "{}" in text else [("b", 2.5), ("a", -1.0)])
    assert all(type(weight) is float for weight in found.part.weights.values())
    again = read_tables(WithNumbers, tomllib.loads(write_tables(found)))
    assert again == found
    assert list(again.part.weights) == list(found.part.weights)


def test_an_override_replaces_a_table_of_numbers_or_one_of_them() -> None:
    for override, expected in (
        ("part.weights={ c = 3 }", {"c": 3.0}),
        ("part.weights={}", {}),
        ("part.weights.a=3", {"a": 3.0, "b": 2.5}),
        ("part.weights.c=3", {"a": 1.0, "b": 2.5, "c": 3.0}),
    ):
        table = tomllib.loads("[part]\nweights = { a = 1.0, b = 2.5 }\n")
        apply_override(table, override)
        assert read_tables(WithNumbers, table) == WithNumbers(Weighted(expected))


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("weights = 3", ("part.weights", "{ NAME = 1.5 }", 3)),
        ("weights = [1.0]", ("part.weights", "{ NAME = 1.5 }", "[1.0]")),
        ("weights = { a = 'x' }", ("part.weights.a", "float", "'x'")),
        ("weights = { a = 1.0, b = true }", ("part.weights.b", "float", True)),
        ("weights = { a = { b = 1.0 } }", ("part.weights.a", "float", "{'b': 1.0}")),
        ("size = 1", ("part.weights",)),
    ],
)
def test_what_is_wrong_in_a_table_of_numbers_is_named_by_its_path(line: str, named: tuple[object, ...]) -> None:
    with pytest.raises(ValueError, match=naming(*named)):
        read_tables(WithNumbers, tomllib.loads(f"[part]\n{line}\n"))


@dataclass(frozen=True)
class Entry:
    names: tuple[str, ...]
    factor: float = 1.0


@dataclass(frozen=True)
class WithEntries:
    size: int
    entry: tuple[Entry, ...] = ()


@dataclass(frozen=True)
class Whole:
    part: WithEntries


def test_a_list_of_tables_reads_back_equal_and_what_is_wrong_in_it_is_named() -> None:
    whole = Whole(WithEntries(3, (Entry(("a.*", "b")), Entry((), 2.5))))
    text = write_tables(whole)
    assert text.count("[[part.entry]]") == 2
    assert read_tables(Whole, tomllib.loads(text)) == whole
    assert read_tables(Whole, tomllib.loads(write_tables(Whole(WithEntries(3))))) == Whole(WithEntries(3))
    for wrong, named in (("names=['a'], factr=1.0", "part.entry[0].factr"), ("factor=1.0", "part.entry[0].names")):
        with pytest.raises(ValueError, match=naming(named)):
            read_tables(Whole, tomllib.loads(f"[part]\nsize=1\nentry=[{{{wrong}}}]"))
