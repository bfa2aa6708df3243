"""Tokens that are hard to guess from the one before appear early, easy ones late; see `token_schedule`."""

from __future__ import annotations

from tools.experiments.token_counts import ease
from tools.experiments.token_schedule import replacements_by


def replacements() -> dict[str, object]:
    """What takes the place of what."""
    return replacements_by(ease, is_late=True)
