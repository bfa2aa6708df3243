"""Environments in which little is installed, made of what is installed here."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def needed(requirements: Iterable[str], extra: str = "") -> dict[str, Distribution]:
    """Distributions that requirements ask for, and what these need, by name."""
    found: dict[str, Distribution] = {}
    waiting = [(text, extra) for text in requirements]
    seen = set()
    while waiting:
        text, extra = waiting.pop()
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        found.setdefault(name, distribution(name))
        for asked in ("", *requirement.extras):
            if (name, asked) not in seen:
                seen.add((name, asked))
                waiting += [(text, asked) for text in found[name].requires or []]
    return found


def link(distributions: Iterable[Distribution], folder: Path) -> None:
    """A folder in which these distributions can be imported, and no others."""
    for own in distributions:
        for file in own.files or []:
            top, *inner = file.parts
            if top == ".." or top == "__pycache__" or (not inner and file.suffix == ".pth"):
                continue
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(own.locate_file(top))).resolve())
