from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tools.experiments.varied import replace_parts

VARIANTS = sorted(
    path.stem
    for path in (Path(__file__).parents[3] / "tools/experiments/variants").glob("*.py")
    if path.stem != "__init__"
)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_replaces_what_is_there(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    replaced = importlib.import_module(f"tools.experiments.variants.{variant}").replacements()
    places, before = [], []
    for place in replaced:
        module, _, path = place.partition(":")
        *parents, name = path.split(".")
        holder = importlib.import_module(module)
        for parent in parents:
            holder = getattr(holder, parent)
        monkeypatch.setattr(holder, name, getattr(holder, name))  # which is put back
        places.append((holder, name))
        before.append(getattr(holder, name))
    replace_parts(variant)
    assert places
    assert all(getattr(*place) != old for place, old in zip(places, before, strict=True))


def test_without_a_variant_nothing_is() -> None:
    from oneflow_dist import training

    before = training.compute_losses
    replace_parts("")
    assert training.compute_losses is before
