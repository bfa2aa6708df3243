"""In which keys configs differ, and from which config of the project a run is made."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oneflow_dist.config import load_config, write_config

CONFIGS = Path(__file__).parents[2] / "configs"
ABSENT = "not there"
NOT_COMPARED = ("run.folder",)  # no two runs share it
Flat = Mapping[str, Any]  # by section.key


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested tables by their whole names."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def differing_keys(configs: Sequence[Flat]) -> list[str]:
    """The keys on which not all agree, in the order of the first that has them."""
    keys = dict.fromkeys(key for config in configs for key in config if key not in NOT_COMPARED)
    return [key for key in keys if any(value_of(config, key) != value_of(configs[0], key) for config in configs)]


def value_of(config: Flat, key: str) -> str:
    """As it is shown."""
    if key not in config:
        return ABSENT
    value = config[key]
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)


def nearest_base(config: Flat, folder: Path = CONFIGS) -> tuple[str, Flat] | None:
    """The project's config that differs in the fewest keys, with its name; None where there are none to compare with.

    The checkout's configs/, or that of the working folder where only the package is installed.
    """
    there = folder if folder.is_dir() else Path("configs")
    paths = sorted([*there.glob("*.toml"), *there.glob("stages/*.toml")])
    bases = {path: base for path in paths if (base := _read_base(path, path.stat().st_mtime)) is not None}
    if not bases:
        return None
    nearest = min(bases, key=lambda path: len(differing_keys([bases[path], config])))
    return f"configs/{nearest.relative_to(there)}", bases[nearest]


@functools.cache
def _read_base(path: Path, _changed: float) -> Flat | None:
    """With all defaults written out, as runs write theirs; None if it is no config of a run."""
    try:
        config = load_config(path)
    except ValueError:  # somebody is writing one, which is no matter of the runs that are shown
        return None
    return flatten(tomllib.loads(write_config(config)))
