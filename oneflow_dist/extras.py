"""Packages that only some programs need: the extras of pyproject.toml."""

from __future__ import annotations

from importlib.util import find_spec


def require(what: object, extra: str, *packages: str) -> None:
    """Refuse, before it has begun, what cannot be done without packages of an extra; none of them is loaded.

    Args:
        what: that needs them: a file, a config key, a command.
        packages: their names in Python.

    Raises:
        ValueError: some are not installed.
    """
    if absent := [name for name in packages if not _is_there(name)]:
        raise ValueError(f"{what}: needs {', '.join(absent)}, not installed here; {install(extra)}")


def install(extra: str) -> str:
    """What to type."""
    return f"pip install 'oneflow_dist[{extra}]'"


def _is_there(name: str) -> bool:
    """A folder of that name alone, as W&B leaves one where a run was started, is no package."""
    spec = find_spec(name)
    return spec is not None and spec.origin is not None
