"""Which sources a run draws from, how much of each, and for which tasks: one YAML file."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from oneflow_dist.data.decoding import CAPTION, Reading
from oneflow_dist.data.samples import TASKS
from oneflow_dist.modality import GIVEN


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """What a field of a sample's .json must be; a sample without the field does not pass."""

    field: str
    min: float = -math.inf
    max: float = math.inf
    one_of: tuple[Any, ...] | None = None

    def passes(self, fields: Mapping[str, Any]) -> bool:
        """Whether a sample with these fields is used."""
        if self.field not in fields:
            return False
        value = fields[self.field]
        if self.one_of is not None:
            return any(
                value == choice and isinstance(value, bool) == isinstance(choice, bool) for choice in self.one_of
            )
        return _is_number(value) and self.min <= value <= self.max


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One entry under `sources`."""

    name: str
    shards: str  # brace or wildcard pattern, or URLs with braces
    weight: float  # its part of the samples, relative to the other sources
    tasks: dict[str, float]  # task -> its part of the source's samples
    index: str | None = None  # folder of the shards' indexes; None: beside them
    prompt: str = ""  # put before every sample
    captions: dict[str, float]  # "txt" or a field of the .json -> its part of the samples
    reading: Reading = field(default_factory=Reading)
    filters: tuple[Filter, ...] = ()
    max_images: int | None = None  # a sample with more pieces is left out
    given: dict[str, str] = field(
        default_factory=dict
    )  # task -> what stands for a given picture, "latents" if not here


class _Table(dict[str, Any]):
    """A YAML table that knows its lines."""

    line: int
    lines: dict[str, int]


class _Loader(yaml.SafeLoader):
    """Safe YAML with `_Table`s, in which a key stands once, and the plain values of YAML 1.2.

    PyYAML is of version 1.1, where no is false, 1:30 is 90, 010 is 8, 2024-01-01 is a date, and 1e5 a text.
    """


def _make_int(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(loader.construct_scalar(node))


def _make_table(loader: _Loader, node: yaml.MappingNode) -> _Table:
    table = _Table()
    table.line, table.lines = node.start_mark.line + 1, {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise _LineError(line, "a list or table as a key; keys are names")
        key = key_node.value
        if key in table:
            raise _LineError(line, f"{key} stands here a second time, first in line {table.lines[key]}; remove one")
        table[key] = loader.construct_object(value_node, deep=True)
        table.lines[key] = line
    return table


TAG = "tag:yaml.org,2002:"
PLAIN = {  # what is none of these is text
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
_Loader.yaml_implicit_resolvers = {}
for _kind, _pattern in PLAIN.items():
    _Loader.add_implicit_resolver(f"{TAG}{_kind}", re.compile(rf"(?:{_pattern})\Z"), None)
_Loader.add_constructor(f"{TAG}map", _make_table)
_Loader.add_constructor(f"{TAG}int", _make_int)


class _LineError(Exception):
    """Something wrong in a line; becomes a ValueError that names the file."""

    def __init__(self, line: int, message: str):
        super().__init__(f"line {line}: {message}")


def load_mixture(path: str) -> tuple[Source, ...]:
    """Read and check a mixture.

    Raises:
        ValueError: no such file, not YAML, an unknown or missing key, a weight that is not positive, an unknown task;
            names the line.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such mixture file; set data.mixture")
    try:
        table = yaml.load(Path(path).read_bytes(), _Loader)
        if not isinstance(table, _Table):
            raise _LineError(1, "expected one key, `sources`, with a table of sources")
        _check_keys(table, ("sources",), ("sources",))
        sources = _get_table(table, "sources")
        return tuple(_read_source(name, _get_table(sources, name)) for name in sources)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a tag, as !!int, before what it cannot be
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    except _LineError as error:
        raise ValueError(f"{path}, {error}") from None


def _is_number(value: Any) -> bool:
    """Whether it is a number; true and false, which Python takes for 1 and 0, are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _read_source(name: str, entry: _Table) -> Source:
    known = (
        "shards",
        "weight",
        "tasks",
        "index",
        "prompt",
        "caption",
        "question",
        "answer",
        "filters",
        "max_images",
        "given",
    )
    _check_keys(entry, known, ("shards", "weight", "tasks"))
    for key in ("shards", "index", "prompt", "question", "answer"):
        if key in entry and not isinstance(entry[key], str):
            raise _LineError(entry.lines[key], f"{key}: {entry[key]!r} is not text; put it in quotes")
    max_images = entry.get("max_images")
    if "max_images" in entry and (type(max_images) is not int or max_images < 0):
        raise _LineError(entry.lines["max_images"], f"max_images: {max_images!r} is not a whole number from 0 on")
    caption = entry.get("caption", CAPTION)
    return Source(
        name=name,
        shards=entry["shards"],
        weight=_read_weight(entry, "weight"),
        tasks=_read_weights(_get_table(entry, "tasks"), TASKS),
        index=entry.get("index"),
        prompt=entry.get("prompt", ""),
        captions={caption: 1.0} if isinstance(caption, str) else _read_weights(_get_table(entry, "caption"), None),
        reading=Reading(question=entry.get("question", "question"), answer=entry.get("answer", "answer")),
        filters=_read_filters(_get_table(entry, "filters")) if "filters" in entry else (),
        max_images=max_images,
        given=_read_given(_get_table(entry, "given")) if "given" in entry else {},
    )


def _read_given(table: _Table) -> dict[str, str]:
    _check_keys(table, TASKS, ())
    for task, given in table.items():
        if given not in GIVEN:
            raise _LineError(table.lines[task], f"{task}: {given!r} is not one of {', '.join(GIVEN)}; write one")
    return dict(table)


def _read_filters(table: _Table) -> tuple[Filter, ...]:
    filters = []
    for name in table:
        rule = _get_table(table, name)
        _check_keys(rule, ("min", "max", "one_of"), ())
        for key in ("min", "max"):
            if key in rule and not _is_number(rule[key]):
                raise _LineError(rule.lines[key], f"{name}: {key} is {rule[key]!r}, not a number; write one, as 0.5")
        one_of = rule.get("one_of")
        if ("one_of" in rule) == ("min" in rule or "max" in rule):
            raise _LineError(rule.line, f"{name}: give either min and max, or one_of")
        if "one_of" in rule and not isinstance(one_of, list):
            raise _LineError(rule.lines["one_of"], f"{name}: one_of is {one_of!r}, not a list; write one, as [a, b]")
        filters.append(
            Filter(
                field=name,
                min=float(rule.get("min", -math.inf)),
                max=float(rule.get("max", math.inf)),
                one_of=tuple(one_of) if one_of is not None else None,
            )
        )
    return tuple(filters)


def _read_weights(table: _Table, known: tuple[str, ...] | None) -> dict[str, float]:
    if known is not None:
        _check_keys(table, known, ())
    return {key: _read_weight(table, key) for key in table}


def _read_weight(table: _Table, key: str) -> float:
    value = table[key]
    if not _is_number(value) or not 0 < value < math.inf:
        raise _LineError(table.lines[key], f"{key}: {value!r} is not a weight; weights are positive numbers")
    return float(value)


def _get_table(table: _Table, key: str) -> _Table:
    if not isinstance(table[key], _Table) or not table[key]:
        raise _LineError(table.lines[key], f"{key}: {table[key]!r} is not a table with entries")
    return table[key]


def _check_keys(table: _Table, known: tuple[str, ...], needed: tuple[str, ...]) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            advice = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
            raise _LineError(table.lines[key], f"unknown key {key}; {advice}")
    for key in needed:
        if key not in table:
            raise _LineError(table.line, f"{key} is missing; add it")
