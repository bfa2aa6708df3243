"""What comments say of fields: for the reference of keys, and, as an extension of griffe, for that of modules."""

from __future__ import annotations

import ast
import html
import io
import re
import textwrap
import tokenize
from typing import Any

from griffe import Class, Docstring, Extension


class Comments(Extension):
    """A field without a docstring has the comment beside it."""

    def on_class(self, *, cls: Class, **_: Any) -> None:
        """Called for every class, with all its members."""
        said = field_comments(textwrap.dedent(cls.source))
        for name, member in cls.members.items():
            if member.is_attribute and member.docstring is None and said.get(name):
                member.docstring = Docstring(as_text(said[name]), parent=member)  # type: ignore[arg-type]


def field_comments(source: str) -> dict[str, str]:
    """By the fields of a class, what its source says of each: comments above it, within it and behind it."""
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    lines = source.splitlines()
    said = {}
    for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first, last = node.lineno, node.end_lineno or node.lineno
            while lines[first - 2].lstrip().startswith("#"):
                first -= 1
            said[node.target.id] = " ".join(comments[line] for line in range(first, last + 1) if line in comments)
    return said


def as_text(text: str) -> str:
    """Of a comment: nothing of it is markup but code between backticks."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"[|*_\\[\]]", lambda sign: f"&#{ord(sign[0])};", html.escape(part)) for part in parts[::2]]
    return "`".join(parts)
