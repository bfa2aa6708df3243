"""Frequent tokens appear early, rare ones late; see `token_schedule`."""

from __future__ import annotations

from tools.experiments.token_counts import frequency
from tools.experiments.token_schedule import replacements_by


def replacements() -> dict[str, object]:
    """What takes the place of what."""
    return replacements_by(frequency, is_late=False)
