"""Rates of the zero-truncated likelihood, see `truncated`, sampled as the project does: no rate is below 1."""

from __future__ import annotations

from tools.experiments.variants.truncated import training_replacements


def replacements() -> dict[str, object]:
    """The losses alone."""
    return training_replacements()
