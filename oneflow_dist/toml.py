"""TOML as frozen dataclasses and back, strictly: unknown keys, wrong types and numbers out of range are errors."""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
from dataclasses import is_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

# Numbers with their intervals, which `check_range` reads.
Positive = Annotated[int, "[1, inf)"]
NonNegative = Annotated[int, "[0, inf)"]
PositiveFloat = Annotated[float, "(0, inf)"]
NonNegativeFloat = Annotated[float, "[0, inf)"]
Share = Annotated[float, "[0, 1]"]
Decay = Annotated[float, "[0, 1)"]


def apply_override(table: dict[str, Any], override: str) -> None:
    """Set `section.key=value` in a table; the value is TOML, a bare word a string.

    Raises:
        ValueError: it is not of that form.
    """
    path, is_assignment, text = override.partition("=")
    section, has_key, key = path.strip().rpartition(".")
    if not (is_assignment and has_key and key and section):
        raise ValueError(f"override {override!r}: not of the form section.key=value, as in train.steps=100")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    for name in section.split("."):
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ValueError(f"{section}: expected a table [{section}], got {inner!r}")
        table = inner
    table[key] = value


def read_tables(kind: type, table: Any, prefix: str = "") -> Any:
    """A dataclass of dataclasses, and of dicts of them by name, from nested tables.

    Raises:
        ValueError: an unknown or missing key, or a wrong type.
    """
    if not isinstance(table, dict):
        raise ValueError(f"{prefix}: expected a table [{prefix}], got {table!r}")
    hints = get_type_hints(kind)
    for key in table:
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1)
            advice = f"did you mean {_join(prefix, near[0])}?" if near else f"known keys: {', '.join(hints)}"
            raise ValueError(f"{_join(prefix, key)}: unknown key; {advice}")
    values = {}
    for field in dataclasses.fields(kind):
        path = _join(prefix, field.name)
        hint = hints[field.name]
        if get_origin(hint) is dict and is_dataclass(get_args(hint)[1]):
            tables = table.get(field.name, {})
            if not isinstance(tables, dict):
                raise ValueError(f"{path}: expected tables [{path}.NAME], got {tables!r}")
            values[field.name] = {
                name: read_tables(get_args(hint)[1], own, _join(path, name)) for name, own in tables.items()
            }
        elif is_dataclass(hint):
            values[field.name] = read_tables(hint, table.get(field.name, {}), path)  # type: ignore[arg-type]
        elif field.name in table:
            values[field.name] = _convert(hint, table[field.name], path)
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{path}: missing; it changes results, so it has no default: write it in the config")
    return kind(**values)


def write_tables(tables: Any) -> str:
    """A dataclass of dataclasses as TOML; `read_tables` reads it back equal."""
    lines: list[str] = []
    for section in dataclasses.fields(tables):
        content = getattr(tables, section.name)
        of_section = {f".{name}": own for name, own in content.items()} if isinstance(content, dict) else {"": content}
        for name, values in of_section.items():
            lines += [f"[{section.name}{name}]", *_write_keys(values), ""]
            for field in dataclasses.fields(values):
                for entry in filter(is_dataclass, _entries(getattr(values, field.name))):
                    lines += [f"[[{section.name}{name}.{field.name}]]", *_write_keys(entry), ""]
    return "\n".join(lines)


def _entries(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else ()


def _write_keys(values: Any) -> list[str]:
    """A line for each key; a list of tables has none, as it comes after the table."""
    pairs = [(field.name, getattr(values, field.name)) for field in dataclasses.fields(values)]
    return [f"{name} = {_to_toml(value)}" for name, value in pairs if not any(map(is_dataclass, _entries(value)))]


def ranges_of(kind: type) -> dict[str, dict[str, str]]:
    """By section and key the interval of every number: the text of `Annotated[int, "[1, inf)"]`."""
    sections = get_type_hints(kind).items()
    return {section: field_ranges(of) for section, of in sections if isinstance(of, type) and is_dataclass(of)}


def field_ranges(kind: type) -> dict[str, str]:
    """The same of one table."""
    hints = get_type_hints(kind, include_extras=True).items()
    return {key: hint.__metadata__[0] for key, hint in hints if get_origin(hint) is Annotated}


def check_range(name: str, value: float, interval: str) -> None:
    """Refuse a number outside of an interval, or of several joined by " or ".

    Args:
        interval: as "[0, 1)" or "(0, inf]"; "[" and "]" belong to it, "(" and ")" do not.

    Raises:
        ValueError: says the name, the value and the interval.
    """
    if not any(_contains(part, value) for part in interval.split(" or ")):
        raise ValueError(f"{name}: {value} must lie in {interval}")


def _contains(interval: str, value: float) -> bool:
    """Whether it does; NaN lies in none."""
    low, high = (_bound(text) for text in interval[1:-1].split(", "))
    is_above = value >= low if interval[0] == "[" else value > low
    return is_above and (value <= high if interval[-1] == "]" else value < high)


def _bound(text: str) -> float:
    base, _, exponent = text.partition("^")
    return float(base) ** int(exponent or 1)


def _convert(hint: Any, value: Any, path: str) -> Any:
    """`value` as the type `hint`; whole numbers may stand for floats, nothing else is converted."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(f"{path}: {value!r} is not one of {', '.join(map(repr, get_args(hint)))}")
        return value
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{path}: expected a list, got {value!r}")
        return tuple(_convert(get_args(hint)[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if get_origin(hint) is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{path}: expected a table of numbers, as {{ NAME = 1.5 }}, got {value!r}")
        return {name: _convert(get_args(hint)[1], item, _join(path, name)) for name, item in value.items()}
    if is_dataclass(hint):
        return read_tables(hint, value, path)  # type: ignore[arg-type]
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"{path}: expected {hint.__name__}, got {value!r}")
    return value


def _to_toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return "[" + ", ".join(_to_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_to_toml(item)}" for name, item in value.items()) + " }" if value else "{}"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML's escapes are JSON's
    return repr(value)


def _join(prefix: str, key: str) -> str:
    return f"{prefix}.{key}" if prefix else key
