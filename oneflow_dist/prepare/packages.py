"""Packages that only some layouts need: imported when they are."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from oneflow_dist.extras import require


def need(module: str) -> Any:
    """Import a module of the extra `prepare`.

    Raises:
        ValueError: it is not installed.
    """
    require("this source", "prepare", module.partition(".")[0])
    return import_module(module)
