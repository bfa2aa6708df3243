"""What the tests of several programs share."""

from __future__ import annotations

from tests.evaluating import counting, evaluated, suite_path, suite_text  # noqa: F401
