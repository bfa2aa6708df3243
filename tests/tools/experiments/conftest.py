"""Shards of styles and two small runs on them, which tests of experiments look at, too."""

from __future__ import annotations

from tests.tools.styles.conftest import runs, styled  # noqa: F401
