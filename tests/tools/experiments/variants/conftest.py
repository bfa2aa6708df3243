"""Parts of the method replaced for one test."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest

Replace = Callable[[str], None]


@pytest.fixture
def replaced(monkeypatch: pytest.MonkeyPatch) -> Replace:
    """`replaced(variant)` puts a variant's parts in their places until the test ends."""

    def replace(variant: str) -> None:
        for place, part in importlib.import_module(f"tools.experiments.variants.{variant}").replacements().items():
            monkeypatch.setattr(place.replace(":", "."), part)

    return replace
