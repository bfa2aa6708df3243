"""The reference as Markdown, made of the source: keys of the config, programs, modules."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints
from unittest.mock import patch

from oneflow_dist.command import COMMANDS, load
from oneflow_dist.config import Config
from tools.documentation.comments import as_text, field_comments

KINDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}
COLUMNS = "100"  # that a program's help may take
FOUND_FIRST = "---\nsearch:\n  boost: 8\n---\n"
ABOUT_KEYS = """\
Made of the dataclasses that a config is read into; [configs/README.md](../configs/README.md) tells of the configs that
come with the project, and of what these keys are for. Unknown keys are errors. What has no default changes results, and
has to be written.
"""
TABLE = "\n| key | type | default | what it is |\n| --- | --- | --- | --- |"


def config_page() -> str:
    """Every key that a config may have: type, range, default, and the comment beside it."""
    tables = [FOUND_FIRST, "# Keys of a config\n", ABOUT_KEYS]
    tables += [_describe_table(path, kind) for path, kind in config_tables()]
    return "\n".join(tables)


def config_tables() -> Iterator[tuple[str, type]]:
    """The tables of a config by their path: `train`, `modality.NAME`, `optim.group`."""
    for section, hint in get_type_hints(Config).items():
        kind: type = hint if dataclasses.is_dataclass(hint) else get_args(hint)[1]  # type: ignore[assignment]
        yield (section if kind is hint else f"{section}.NAME"), kind
        for key, inner in get_type_hints(kind).items():
            if get_origin(inner) is tuple and dataclasses.is_dataclass(get_args(inner)[0]):
                yield f"{section}.{key}", get_args(inner)[0]


def key_anchors() -> dict[str, str]:
    """Keys as documents name them, and the anchors of their rows: `train.steps`, of modalities without a name."""
    rows = ((path, field.name) for path, kind in config_tables() for field in dataclasses.fields(kind))
    return {f"{path.removesuffix('.NAME')}.{key}": f"{path}.{key}" for path, key in rows}


def _describe_table(path: str, kind: type) -> str:
    is_list = path.count(".") == 1 and not path.endswith(".NAME")
    doc = re.sub(r"^\[+[\w.]+\]+ ", "", inspect.cleandoc(kind.__doc__ or ""))
    hints, said = get_type_hints(kind, include_extras=True), field_comments(inspect.getsource(kind))
    rows = [
        f"| [`{field.name}`](){{ #{path}.{field.name} }} | {as_text(describe_type(hints[field.name]))} "
        f"| {describe_default(field)} | {as_text(said[field.name])} |"
        for field in dataclasses.fields(kind)
    ]
    head = f"[[{path}]]" if is_list else f"[{path}]"
    return "\n".join([f"## `{head}` {{ #{path} }}\n", doc, TABLE, *rows, ""])


def describe_type(hint: Any) -> str:
    """What may stand there, with the interval of a number."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{KINDS[args[0]]} in {args[1]}"
    if origin is Literal:
        return " or ".join(f"`{json.dumps(choice)}`" for choice in args)
    if origin is tuple:
        return "tables" if dataclasses.is_dataclass(args[0]) else f"list of: {describe_type(args[0])}"
    if origin is dict:
        return f"table of: {describe_type(args[1])}"
    return KINDS[hint]


def describe_default(field: dataclasses.Field[Any]) -> str:
    """As it would be written in TOML."""
    if field.default_factory is not dataclasses.MISSING:
        return f"`{json.dumps(field.default_factory())}`"
    return "" if field.default is dataclasses.MISSING else f"`{json.dumps(field.default)}`"


def programs_page() -> str:
    """What `oneflow X --help` prints, for every X."""
    from tools.benchmark.__main__ import COMMANDS as BENCHMARKS

    about = "What each prints for `--help`. [The command](../docs/command.md) tells of all of them at once.\n"
    parts = [FOUND_FIRST, "# Programs\n", about]
    for name, (_, what) in COMMANDS.items():
        parts.append(f"## oneflow {name}\n\n{what[0].upper()}{what[1:]}.\n\n```text\n{help_of(name)}```\n")
        inner = BENCHMARKS if name == "benchmark" else ()
        parts += [f"### oneflow {name} {own}\n\n```text\n{help_of(name, own)}```\n" for own in inner]
    return "\n".join(parts)


def help_of(name: str, *words: str) -> str:
    """What a program prints, in a window of `COLUMNS`."""
    printed = io.StringIO()
    with (
        patch.object(sys, "argv", [f"oneflow {name}", *words, "--help"]),
        patch.dict(os.environ, {"COLUMNS": COLUMNS}),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        load(name).main()
    return printed.getvalue()


def module_pages(folders: dict[str, Path]) -> dict[str, str]:
    """A page for each module of packages, and one that lists all of them, by path."""
    pages, lists = {}, []
    for package, folder in folders.items():
        lists.append(f"## {package}\n\n| module | |\n| --- | --- |")
        for path in sorted((folder / package).rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
            if parts[-1] == "__init__" or not (path.parent / "__init__.py").is_file():
                continue
            name, uri = ".".join(parts), f"{'/'.join(parts)}.md"
            lists.append(f"| [`{name}`]({uri}) | {as_text(' '.join(doc.partition(chr(10) * 2)[0].split()))} |")
            pages[uri] = f"---\ntitle: {parts[-1]}\nsearch:\n  boost: 0.1\n---\n\n# {name}\n\n::: {name}\n"
        lists.append("")
    return {"README.md": "\n".join(["# Modules\n", *lists]), **pages}
